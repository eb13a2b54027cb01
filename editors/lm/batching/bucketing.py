"""Bucketing: texts of several batches in buckets of similar length, so that passes compute little padding.

Shape legend: B texts, T tokens, N answer tokens, d hidden width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from editors.common.collectives import as_many_as_others
from editors.lm.batching.compact import left_order
from editors.lm.batching.costs import reading_cost
from editors.texts.batches import TokenBatch


@dataclass(frozen=True)
class LengthBucket:
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


def length_buckets(
    batches: Sequence[TokenBatch],
    hidden: Sequence[Tensor | None],
    chosen: Sequence[int] | None = None,
    *,
    one_pass: bool = False,
) -> list[LengthBucket]:
    """The texts of all batches, in buckets that together cost the least.

    Args:
        batches: texts for a decoder-only model, padded on either side.
        hidden: the prefix `[B, T, d]` of each batch, or `None` for each.
        chosen: the numbers of some texts, to leave out the others.
        one_pass: all texts are to be in one bucket, whatever it costs; the host need not wait for any lengths then.
    """
    width = max(batch.input_ids.shape[1] for batch in batches)
    joined = _joined(batches, width)
    states = [
        _at_left(states, batch, width) for states, batch in zip(hidden, batches, strict=True) if states is not None
    ]
    prefix = torch.cat(states) if states else None
    if one_pass:
        answers = torch.arange(len(joined.targets), device=joined.targets.device)
        return [LengthBucket(joined, prefix, answers, list(range(joined.num_texts)))]
    lengths = joined.attention_mask.sum(dim=1).tolist()
    wanted = range(joined.num_texts) if chosen is None else chosen
    found = cheapest_buckets([lengths[row] for row in wanted], reading_cost(joined.input_ids.device))
    parts = [[wanted[place] for place in places] for places in found]
    return [_selected(joined, prefix, rows, max(lengths[row] for row in rows)) for rows in parts]


def cheapest_buckets(
    lengths: Sequence[int], cost: Callable[[int, int], int], *, sharded: bool = False
) -> list[list[int]]:
    """Indices of texts in buckets of similar length, such that the buckets' costs add up to the least.

    Args:
        lengths: of the texts.
        cost: what a bucket of so many texts costs if the longest has such a length.
        sharded: the model that will run the buckets is, so all processes need equally many: the cheapest bucket is
            there again until they have. Collective.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # For the `end` shortest texts: the least cost, and where the last bucket of that solution starts.
    best = {0: (0, 0)}
    end = 0
    for length, count in sorted(Counter(lengths).items()):
        end += count
        best[end] = min((before + cost(end - start, length), start) for start, (before, _) in best.items())
    found: list[list[int]] = []
    while end:
        start = best[end][1]
        found.append(order[start:end])
        end = start
    return as_many_as_others(found) if sharded else found


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


def _selected(joined: TokenBatch, prefix: Tensor | None, rows: list[int], length: int) -> LengthBucket:
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
    return LengthBucket(tokens, None if prefix is None else prefix[index, :length], answers, rows)
