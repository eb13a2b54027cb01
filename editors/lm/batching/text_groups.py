"""Texts of several batches run together: moved to the left edge, and grouped so that little padding is computed.

Shape legend: B texts, T tokens, d hidden width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editors.common.collectives import as_many_as_others
from editors.texts.batches import TokenBatch

# What another prefix pass costs, in tokens that could be computed in its stead, because it reads all weights once more:
# measured on a CPU; for the rest the arithmetic a GPU does in the time it reads a 16-bit weight.
_PASS_COST = {"cpu": 25}
_PASS_COST_ELSEWHERE = 250
# Where processes share the model, a pass gathers its weights from them: in that time a GPU does the arithmetic of some
# 2,700 tokens (2 bytes a weight at 150 GB/s; 2 operations a weight and token at 400 Tflop/s), and CPUs of hundreds.
_SHARED_PASS_COST = 2500
# What it costs to go on behind a token that has been read, in tokens that could be read in its stead, because keys and
# values are copied. Measured on a CPU: 0.1 to 0.2.
READ_TOKEN_COST = 0.2
# No token has this id.
_PADDING = -1

Text = tuple[int, ...]
"""The token ids of a text."""


def pass_cost(device: torch.device, *, in_step: bool = False) -> int:
    """What another pass over the model costs, in tokens that could be computed in its stead.

    Args:
        device: where the model runs.
        in_step: processes share the model.
    """
    return _SHARED_PASS_COST if in_step else _PASS_COST.get(device.type, _PASS_COST_ELSEWHERE)


def reading_cost(device: torch.device, *, in_step: bool = False) -> Callable[[int, int], int]:
    """What a pass over so many texts costs if the longest has such a length, in tokens; see `pass_cost`."""
    extra = pass_cost(device, in_step=in_step)
    return lambda count, length: extra + count * length


def left_order(batch: TokenBatch) -> Tensor:
    """`[B, T]` for each place the token that stands there once every text has been moved to the left edge."""
    return batch.attention_mask.argsort(dim=1, descending=True, stable=True)


class Compact:
    """A token batch with every text moved to the left edge, whichever side it was padded on.

    Attributes:
        input_ids: `[B, T]`.
        texts: the token ids of each text.
    """

    def __init__(self, batch: TokenBatch) -> None:
        self._order = left_order(batch)
        self.input_ids = batch.input_ids.gather(1, self._order)
        # One copy to the host, for which a GPU is waited for.
        rows = batch.input_ids.masked_fill(batch.attention_mask == 0, _PADDING).tolist()
        self.texts: list[Text] = [tuple(id_ for id_ in ids if id_ != _PADDING) for ids in rows]

    def put_back(self, states: Sequence[Tensor]) -> Tensor:
        """Lay the states `[T, d]` of each text out as `[B, T, d]`, at the text's places; zeros elsewhere."""
        padded = pad_sequence(list(states), batch_first=True)
        places = self._order[:, : padded.shape[1]].unsqueeze(-1).expand_as(padded)
        return padded.new_zeros(*self._order.shape, padded.shape[-1]).scatter(1, places, padded)


def groups(lengths: Sequence[int], cost: Callable[[int, int], int], *, in_step: bool = False) -> list[list[int]]:
    """Indices of texts in groups of similar length, such that the groups' costs add up to the least.

    Args:
        lengths: of the texts.
        cost: what a group of so many texts costs if the longest has such a length.
        in_step: processes share the model that will run the groups, and need equally many: the cheapest group is there
            again until they have. Collective.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # For the `end` shortest texts: the least cost, and where the last group of that solution starts.
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
    return as_many_as_others(found) if in_step else found
