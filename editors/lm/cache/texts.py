"""`AnsweredTexts`: texts told apart by all that the frozen model's answer and its loss depend on.

Shape legend: N answer tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editors.lm.batching.compact import Compact
from editors.lm.cache.files import Key
from editors.texts.batches import TokenBatch


class AnsweredTexts:
    """The texts of a batch for a decoder-only model.

    Attributes:
        keys: for each text how many answer tokens it has, the places that predict them, these tokens, and all tokens
            that are read. Texts with equal keys are equal, on whichever side they are padded.
        answers: for each text the numbers of its answer tokens among the batch's.
    """

    def __init__(self, batch: TokenBatch) -> None:
        assert batch.labels is None, "what the decoder of an encoder-decoder model reads is not in the key"
        firsts = batch.attention_mask.argmax(dim=1)
        places = (batch.positions % batch.input_ids.shape[1] - firsts[batch.rows]).tolist()
        targets = batch.targets.tolist()
        self.answers: list[list[int]] = [[] for _ in range(batch.num_texts)]
        for number, row in enumerate(batch.rows.tolist()):
            self.answers[row].append(number)
        self.keys: list[Key] = [
            (len(own), *(places[number] for number in own), *(targets[number] for number in own), *ids)
            for own, ids in zip(self.answers, Compact(batch).texts, strict=True)
        ]

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """`[N, ...]` from what belongs to each text's answer tokens: the order of the batch."""
        joined = torch.cat(list(parts))
        numbers = torch.tensor([number for own in self.answers for number in own], device=joined.device)
        return torch.empty_like(joined).index_copy_(0, numbers, joined)
