"""Token ids of texts of different lengths as one tensor.

Shape legend: B texts, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# What fills the tokens of a batch. They are masked, so any id that the model's table has will do. The tokenizer's own
# padding token may lie outside of it: many were added without making the table larger.
PAD_ID = 0


def padded(rows: Sequence[Sequence[int] | Tensor], value: int, side: Literal["left", "right"] = "right") -> Tensor:
    """`[B, T]` the rows, filled up with `value`.

    Args:
        rows: integers, all on one device.
        value: for places that a row has nothing for.
        side: where those places are.

    >>> padded([[5, 6], [7]], 0, "left").tolist()
    [[5, 6], [0, 7]]
    """
    if not rows:
        return torch.empty(0, 1, dtype=torch.long)
    parts = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(parts, batch_first=True, padding_value=value, padding_side=side)


def padded_texts(
    texts: Sequence[Sequence[int] | Tensor], pad_id: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """`[B, T]` token ids of texts, and `[B, T]` ones where they have a token.

    Args:
        texts: their token ids, all on one device.
        pad_id: the id of padding.
        side: where to pad.

    >>> ids, mask = padded_texts([[5, 6], [7]], 0)
    >>> mask.tolist()
    [[1, 1], [1, 0]]
    """
    ids = padded(texts, pad_id, side)
    mask = padded([torch.ones(len(text), dtype=torch.long) for text in texts], 0, side)
    return ids, mask.to(ids.device)
