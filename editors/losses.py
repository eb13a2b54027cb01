"""Losses over answer tokens, averaged for each episode first.

Shape legend: N answer tokens, V vocabulary, E episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def episode_means(values: Tensor, episode: Tensor, num_episodes: int) -> tuple[Tensor, Tensor]:
    """Mean of `values` `[N]` over the tokens of each episode.

    Returns:
        means: `[E]`, zero for episodes without a token.
        present: `[E]` booleans, whether an episode has a token.
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


def locality_kl(base_logits: Tensor, edited_logits: Tensor) -> Tensor:
    """`KL(p_base || p_edited)` in nats at each answer token (Mitchell et al. 2022a, eq. 4).

    Args:
        base_logits: `[N, V]` of the unedited model.
        edited_logits: `[N, V]` of the edited model.

    Returns:
        `[N]` in float32.
    """
    base = base_logits.float().log_softmax(dim=-1)
    edited = edited_logits.float().log_softmax(dim=-1)
    return functional.kl_div(edited, base, reduction="none", log_target=True).sum(dim=-1)


def mean_over_present(means: Tensor, present: Tensor) -> Tensor:
    """Mean of `[E]` values over the episodes that have one; zero when none has."""
    return (means * present).sum() / present.sum().clamp(min=1)
