"""An edit of lower rank: the closest one there is, and how far off it is.

Shape legend: R rank, K smaller rank.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.texts.batches import TokenBatch


@torch.no_grad()
def truncate(edit: LowRankEdit, rank: int) -> LowRankEdit:
    """The edit whose weight updates have at most this rank and are closest to those of `edit` (Frobenius norm).

    By Eckart and Young (1936) these are the leading singular components. They are computed from the factors: with
    `u^T = Q_u R_u` and `v^T = Q_v R_v`, the update `u^T v = Q_u (R_u R_v^T) Q_v^T` has the singular values of a
    matrix of R x R, so nothing of the size of a weight is formed.

    Args:
        edit: of one episode.
        rank: K. Where it is at least an update's rank, that update keeps its effect exactly (to rounding).

    Raises:
        EditorError: the rank is less than 1, or the edit holds several episodes.
    """
    if rank < 1:
        raise EditorError(f"an edit needs a rank of at least 1, got {rank}")
    edit.require_single("truncate")
    return LowRankEdit({site: _truncated(update, rank) for site, update in edit.updates.items()}, dict(edit.metadata))


def _truncated(update: SiteUpdate, rank: int) -> SiteUpdate:
    """The `rank` leading singular components of an update; `u` and `v` share the singular values evenly."""
    q_u, r_u = torch.linalg.qr(update.u[0].double().mT)
    q_v, r_v = torch.linalg.qr(update.v[0].double().mT)
    left, values, right = torch.linalg.svd(r_u @ r_v.mT, full_matrices=False)
    root = values[:rank].sqrt()
    u = (q_u @ (left[:, :rank] * root)).mT
    v = (q_v @ (right[:rank].mT * root)).mT
    return SiteUpdate(u.unsqueeze(0).to(update.u.dtype), v.unsqueeze(0).to(update.v.dtype))


def truncation_error(edit: LowRankEdit, truncated: LowRankEdit) -> dict[str, float]:
    """For each site `|W - W_k| / |W|` (Frobenius) of the two weight updates; zero for an update that is zero."""
    errors = {}
    for site, update in edit.updates.items():
        other = truncated.updates[site]
        both = SiteUpdate(torch.cat([update.u, other.u], 1), torch.cat([update.v, -other.v], 1))
        size = _norm(update)
        errors[site] = _norm(both) / size if size else 0.0
    return errors


def _norm(update: SiteUpdate) -> float:
    """Frobenius norm of `u^T v`, from the small Gram matrices of its factors."""
    u, v = update.u[0].double(), update.v[0].double()
    return float(((u @ u.mT) * (v @ v.mT)).sum().clamp(min=0).sqrt())


@torch.no_grad()
def logit_error(lm: FrozenLM, tokens: TokenBatch, edit: LowRankEdit, truncated: LowRankEdit) -> float:
    """The largest absolute difference of any logit between the two edits where `tokens` predict their answers."""
    tokens = replace(tokens, episode=torch.zeros_like(tokens.episode))
    return float((lm.logits(tokens, edit).float() - lm.logits(tokens, truncated).float()).abs().max())
