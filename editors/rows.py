"""From the factors of several texts to the rows that carry a gradient, and from rows to the factors of an edit.

Shape legend: B texts, T tokens, N factor rows (tokens of all texts), E episodes, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editors.edits import SiteUpdate
from editors.frozen import Factors


def gradient_rows(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens whose input and gradient are both non-zero, in order.

    Padding, the last token, and in the last block everything but the predicting positions carry no gradient.

    Returns:
        u: `[N, d_in]` in float32.
        delta: `[N, d_out]` in float32.
        text: `[N]` the text each row belongs to.
    """
    kept = (factors.u != 0).any(dim=-1) & (factors.delta != 0).any(dim=-1)
    return factors.u[kept].float(), factors.delta[kept].float(), kept.nonzero()[:, 0]


def pad_episodes(u: Tensor, v: Tensor, episode: Tensor, num_episodes: int) -> SiteUpdate:
    """Lay rows `[N, .]` of consecutive episodes out as `[E, R, .]`, R being the most rows any episode has.

    Args:
        u: `[N, d_in]`.
        v: `[N, d_out]`.
        episode: `[N]`, non-decreasing.
        num_episodes: E.
    """
    counts = torch.bincount(episode, minlength=num_episodes)
    slot = torch.arange(len(episode), device=episode.device) - (counts.cumsum(0) - counts)[episode]
    shape = (num_episodes, max(1, int(counts.max())))
    return SiteUpdate(
        u.new_zeros(*shape, u.shape[-1]).index_put((episode, slot), u),
        v.new_zeros(*shape, v.shape[-1]).index_put((episode, slot), v),
    )
