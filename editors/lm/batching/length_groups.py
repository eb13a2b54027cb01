"""Texts of several batches regrouped by length, so that passes with an edit compute little padding.

Shape legend: B texts, T tokens, N answer tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from editors.lm.batching.text_groups import groups, left_order, reading_cost
from editors.texts.batches import TokenBatch


@dataclass(frozen=True)
class LengthGroup:
    """Texts of similar length.

    Args:
        tokens: the texts, padded on the right.
        hidden: `[B, T, d]` the frozen prefix of each; `None` without one.
        answers: `[N]` the number of each answer token among those of all batches.
        rows: the number of each text among those of all batches.
    """

    tokens: TokenBatch
    hidden: Tensor | None
    answers: Tensor
    rows: list[int]


def length_groups(
    batches: Sequence[TokenBatch],
    hidden: Sequence[Tensor | None],
    chosen: Sequence[int] | None = None,
    *,
    one_pass: bool = False,
) -> list[LengthGroup]:
    """The texts of all batches, in groups that together cost the least.

    Args:
        batches: texts for a decoder-only model, padded on either side.
        hidden: the prefix `[B, T, d]` of each batch, or `None` for each.
        chosen: the numbers of some texts, to leave out the others.
        one_pass: there is to be one group of all texts, whatever it costs; the host need not wait for any lengths then.
    """
    width = max(batch.input_ids.shape[1] for batch in batches)
    joined = _joined(batches, width)
    states = [
        _at_left(states, batch, width) for states, batch in zip(hidden, batches, strict=True) if states is not None
    ]
    prefix = torch.cat(states) if states else None
    if one_pass:
        answers = torch.arange(len(joined.targets), device=joined.targets.device)
        return [LengthGroup(joined, prefix, answers, list(range(joined.num_texts)))]
    lengths = joined.attention_mask.sum(dim=1).tolist()
    wanted = range(joined.num_texts) if chosen is None else chosen
    found = groups([lengths[row] for row in wanted], reading_cost(joined.input_ids.device))
    parts = [[wanted[place] for place in places] for places in found]
    return [_selected(joined, prefix, rows, max(lengths[row] for row in rows)) for rows in parts]


def _joined(batches: Sequence[TokenBatch], width: int) -> TokenBatch:
    """All batches as one, every text at the left edge of `width` tokens."""
    firsts = [batch.attention_mask.argmax(dim=1) for batch in batches]
    starts = torch.tensor([0, *(batch.num_texts for batch in batches)]).cumsum(0).tolist()
    rows = [batch.rows + start for batch, start in zip(batches, starts, strict=False)]
    columns = [b.positions % b.input_ids.shape[1] - first[b.rows] for b, first in zip(batches, firsts, strict=True)]
    return TokenBatch(
        torch.cat([_at_left(batch.input_ids, batch, width) for batch in batches]),
        torch.cat([_at_left(batch.attention_mask, batch, width) for batch in batches]),
        torch.cat(rows) * width + torch.cat(columns),
        torch.cat([batch.targets for batch in batches]),
        torch.cat(rows),
        torch.cat([batch.episode for batch in batches]),
    )


def _at_left(values: Tensor, batch: TokenBatch, width: int) -> Tensor:
    """`[B, T, ...]` values of a batch's tokens as `[B, width, ...]`, each text moved to the left edge."""
    moved = values[torch.arange(len(values), device=values.device)[:, None], left_order(batch)]
    return pad(moved, [0, 0] * (values.dim() - 2) + [0, width - values.shape[1]])


def _selected(joined: TokenBatch, prefix: Tensor | None, rows: list[int], length: int) -> LengthGroup:
    """Some rows of `joined`, without the padding that they all have."""
    index = torch.tensor(rows, device=joined.rows.device)
    place = torch.full((joined.num_texts,), -1, device=index.device)
    place[index] = torch.arange(len(rows), device=index.device)
    answers = (place[joined.rows] >= 0).nonzero()[:, 0]
    own = place[joined.rows[answers]]
    tokens = TokenBatch(
        joined.input_ids[index, :length],
        joined.attention_mask[index, :length],
        own * length + joined.positions[answers] % joined.input_ids.shape[1],
        joined.targets[answers],
        own,
        joined.episode[index],
    )
    return LengthGroup(tokens, None if prefix is None else prefix[index, :length], answers, rows)
