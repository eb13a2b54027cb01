"""Texts without their padding: moved to the left edge, and put back to where they were.

Shape legend: B texts, T tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editors.texts.batches import TokenBatch

# No token has this id.
_PADDING = -1

Text = tuple[int, ...]
"""The token ids of a text."""


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
