"""Placebos: edits that should not work, to see how much of a row's value any edit of that size would give.

Shape legend: E episodes, R rank.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit, SiteUpdate
from editors.scoring.report.measures import normalised
from editors.texts.requests import EditRequest

SHUFFLED_TARGET, RANDOM_UPDATE = "shuffled_target", "random_update"


def with_other_targets(requests: Sequence[EditRequest], seed: int) -> list[EditRequest] | None:
    """Each request with the target of another one, which reads otherwise; `None` where some request finds none."""
    choose = random.Random(seed)
    targets = list(dict.fromkeys(request.target for request in requests))
    others = [[t for t in targets if normalised(t) != normalised(request.target)] for request in requests]
    if not all(others):
        return None
    return [replace(request, target=choose.choice(own)) for request, own in zip(requests, others, strict=True)]


def random_update(edit: Edit, seed: int) -> LowRankEdit | None:
    """A random update of the same rank and norm in every layer; `None` for an edit that is no weight update."""
    if edit.weight_updates is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site, update in edit.weight_updates.items():
        u, v = (torch.randn(factor.shape, generator=generator).to(factor) for factor in (update.u, update.v))
        scale = update_norms(update) / update_norms(SiteUpdate(u, v)).clamp(min=1e-30)
        updates[site] = SiteUpdate(u, v * scale[:, None, None])
    return LowRankEdit(updates)


def update_norms(update: SiteUpdate) -> Tensor:
    """`[E]` Frobenius norms of the updates `u^T v`, without forming them."""
    u, v = update.u.double(), update.v.double()
    return ((u @ u.mT) * (v @ v.mT)).sum(dim=(1, 2)).clamp(min=0).sqrt().to(update.v.dtype)
