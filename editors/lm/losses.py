"""Losses over answer tokens, averaged for each episode first, and what a training step has of them.

Shape legend: N answer tokens, V vocabulary, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from editors.lm.answer_logits import AnswerLogits

# Of a table of logits so many numbers are worked on at once: on a CPU few, to save memory; on a GPU as few kernels as
# that allows.
_NUMBERS_AT_ONCE = {"cpu": 400_000}
_NUMBERS_AT_ONCE_ELSEWHERE = 16_000_000


@dataclass
class EpisodeLosses:
    """Losses of a step; scalars in nats per token, averaged over episodes. `None` stands for what is not computed.

    Args:
        total: what is minimised.
        edit: the edit loss; negative log-likelihood of the target after a paraphrase, under the edited model.
        locality: `KL(base || edited)` on the locality answers.
        shift: largest change of any logit on the locality texts.
        edit_before: negative log-likelihood of the target after the edit prompt, under the base model.
    """

    total: Tensor
    edit: Tensor
    locality: Tensor
    shift: Tensor | None = None
    edit_before: Tensor | None = None

    def detach(self) -> EpisodeLosses:
        """The same numbers without their autograd history."""
        return EpisodeLosses(**{name: value.detach() for name, value in self.items()})

    def items(self) -> list[tuple[str, Tensor]]:
        """Those losses that are computed, by name."""
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return [(name, value) for name, value in values if value is not None]


def episode_means(values: Tensor, episode: Tensor, num_episodes: int) -> tuple[Tensor, Tensor]:
    """Mean of `values` `[N]` over the tokens of each episode.

    Returns:
        means: `[E]`, zero for episodes without a token.
        present: `[E]` booleans, whether an episode has a token.

    >>> means, present = episode_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3)
    >>> means.tolist(), present.tolist()
    ([2.0, 0.0, 5.0], [True, False, True])
    """
    sums = values.new_zeros(num_episodes).index_add(0, episode, values)
    counts = values.new_zeros(num_episodes).index_add(0, episode, torch.ones_like(values))
    return sums / counts.clamp(min=1), counts > 0


def answer_nll(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood in nats of each answer token.

    Args:
        logits: `[N, V]` at the predicting positions.
        targets: `[N]` answer token ids.
        smoothing: share of the probability that the V - 1 other tokens are to have, in equal parts.

    Returns:
        `[N]` in float32.
    """
    # torch gives the other tokens, and the target too, an equal part of its own share.
    share = smoothing * logits.shape[-1] / max(1, logits.shape[-1] - 1)
    return functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=share)


def locality_kl(base_logits: Tensor, edited_logits: Tensor, *, overwrite: bool = False) -> Tensor:
    """`KL(p_base || p_edited)` in nats at each answer token (Mitchell et al. 2022a, eq. 4).

    Args:
        base_logits: `[N, V]` of the unedited model; a constant, no gradient flows to it.
        edited_logits: `[N, V]` of the edited model.
        overwrite: keep what the backward pass needs in the place of `base_logits`, if those are in float32.

    Returns:
        `[N]` in float32.
    """
    reuse = overwrite and base_logits.dtype == torch.float32
    kept = base_logits if reuse else torch.empty_like(base_logits, dtype=torch.float32)
    divergence: Tensor = _Divergence.apply(base_logits, edited_logits, kept)
    return divergence


def locality_change(base: AnswerLogits, edited: AnswerLogits) -> tuple[Tensor, Tensor]:
    """`locality_kl` `[N]` of each answer token, and `[]` the largest change of any logit.

    Args:
        base: of the unedited model.
        edited: of the edited model.
    """
    changes: list[Tensor] = []

    def divergence(logits: Tensor, rows: slice) -> Tensor:
        unedited = base.logits(rows)
        changes.append(largest_change(unedited, logits))
        return locality_kl(unedited, logits, overwrite=True)

    return edited.losses(divergence), torch.stack(changes).max()


class _Divergence(torch.autograd.Function):
    """`locality_kl`, which keeps one `[N, V]` tensor for the backward pass where torch's own functions keep four.

    Where the logits of all tokens are there at once, those four would be among the largest tensors of a training step.
    So would what is computed on the way: it is there for a few rows at a time only.
    """

    @staticmethod
    def forward(ctx: Any, base_logits: Tensor, edited_logits: Tensor, difference: Tensor) -> Tensor:
        parts = (_some_rows(tensor) for tensor in (base_logits, edited_logits, difference))
        divergence = torch.cat([_divergence(*rows) for rows in zip(*parts, strict=True)])
        ctx.save_for_backward(difference)
        ctx.dtype = edited_logits.dtype
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (difference,) = ctx.saved_tensors
        return None, (gradient.unsqueeze(-1) * difference).to(ctx.dtype), None


def largest_change(base_logits: Tensor, edited_logits: Tensor) -> Tensor:
    """`[]` the largest absolute difference between two `[N, V]` of logits."""
    parts = zip(_some_rows(base_logits), _some_rows(edited_logits.detach()), strict=True)
    return torch.stack([(base - edited).abs_().max() for base, edited in parts]).max()


def _some_rows(logits: Tensor) -> Sequence[Tensor]:
    """`[N, V]` in parts of a few rows."""
    numbers = _NUMBERS_AT_ONCE.get(logits.device.type, _NUMBERS_AT_ONCE_ELSEWHERE)
    return logits.split(max(1, numbers // logits.shape[-1]))


def _divergence(base_logits: Tensor, edited_logits: Tensor, difference: Tensor) -> Tensor:
    """`[N]` divergence of some rows; fills `difference` `[N, V]` with the edited probabilities less the base ones."""
    base = base_logits.float().log_softmax(dim=-1)
    edited = edited_logits.float().log_softmax(dim=-1)
    probability = base.exp()
    divergence = base.sub_(edited).mul_(probability).sum(dim=-1)
    difference.copy_(edited.exp_().sub_(probability))
    return divergence


def mean_over_present(means: Tensor, present: Tensor) -> Tensor:
    """Mean of `[E]` values over the episodes that have one; zero when none has."""
    return (means * present).sum() / present.sum().clamp(min=1)
