"""From the factors of several texts to the rows that carry a gradient, and from rows to the factors of an edit.

How many rows there are, only their values tell. On a GPU the host has to wait for those, so it asks once for all sites.

Shape legend: B texts, T tokens, N factor rows (tokens of all texts), E episodes, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editors.edits.protocol import SiteUpdate
from editors.lm.signal import Factors


def gradient_places(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """For each site the tokens whose input and gradient are both non-zero, in order.

    Padding, the last token, and in the last block everything but the predicting positions carry no gradient.

    Returns:
        `[N]` places in the flattened `[B * T]` tokens.
    """
    masks = [((f.u != 0).any(dim=-1) & (f.delta != 0).any(dim=-1)).flatten() for f in factors.values()]
    on_host = torch.cat(masks).cpu().split([len(mask) for mask in masks])
    found = [host.nonzero()[:, 0].to(mask.device) for host, mask in zip(on_host, masks, strict=True)]
    return dict(zip(factors, found, strict=True))


def gradient_rows(factors: Factors, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of one site.

    Args:
        factors: of the site.
        places: `[N]` from `gradient_places`.

    Returns:
        u: `[N, d_in]` in float32.
        delta: `[N, d_out]` in float32.
        text: `[N]` the text each row belongs to.
    """
    u, delta = factors.u.flatten(0, 1), factors.delta.flatten(0, 1)
    return u[places].float(), delta[places].float(), places // factors.u.shape[1]


def pad_episodes(parts: Sequence[tuple[Tensor, Tensor, Tensor]], num_episodes: int) -> list[SiteUpdate]:
    """Lay rows `[N, .]` of consecutive episodes out as `[E, R, .]`, R being the most rows any episode has.

    Args:
        parts: for each update `[N, d_in]`, `[N, d_out]`, and `[N]` the episode of each row, non-decreasing.
        num_episodes: E.
    """
    counts = [e.new_zeros(num_episodes).index_add(0, e, torch.ones_like(e)) for _, _, e in parts]
    ranks: list[int] = torch.stack([count.max() for count in counts]).tolist()
    return [_padded(*part, count, max(1, rank)) for part, count, rank in zip(parts, counts, ranks, strict=True)]


def _padded(u: Tensor, v: Tensor, episode: Tensor, counts: Tensor, rank: int) -> SiteUpdate:
    slot = torch.arange(len(episode), device=episode.device) - (counts.cumsum(0) - counts)[episode]
    shape = (len(counts), rank)
    return SiteUpdate(
        u.new_zeros(*shape, u.shape[-1]).index_put((episode, slot), u),
        v.new_zeros(*shape, v.shape[-1]).index_put((episode, slot), v),
    )
