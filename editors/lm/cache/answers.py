"""What the unedited model says at answers, kept as hidden states: far fewer numbers than a vocabulary's.

Shape legend: B texts, T tokens, N answer tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from editors.lm.batching.bucketing import length_buckets
from editors.lm.cache.files import Entry
from editors.lm.cache.store import TensorStore
from editors.lm.cache.texts import AnsweredTexts
from editors.texts.batches import TokenBatch

_STATES = "states"


class CachedAnswers:
    """Hidden states of the unedited model after its last block, at the positions that predict answer tokens.

    Args:
        store: where they are kept.
        compute: runs texts, from their frozen prefix where there is one, and gives these states `[N, d]`.
    """

    def __init__(self, store: TensorStore, compute: Callable[[TokenBatch, Tensor | None], Tensor]) -> None:
        self.store = store
        self._compute = compute

    def states(self, tokens: TokenBatch, hidden: Tensor | None) -> Tensor:
        """`[N, d]`; only texts that are not known are run.

        Args:
            tokens: the texts.
            hidden: `[B, T, d]` their frozen prefix.
        """
        texts = AnsweredTexts(tokens)
        device = tokens.input_ids.device
        entries = self.store.complete(texts.keys, device, lambda missing: self._run(tokens, hidden, missing))
        return texts.in_order([entry[_STATES] for entry in entries])

    def _run(self, tokens: TokenBatch, hidden: Tensor | None, rows: list[int]) -> Iterator[tuple[int, Entry]]:
        for group in length_buckets([tokens], [hidden], rows):
            states = self._compute(group.tokens, group.hidden)
            for row, own in zip(group.rows, AnsweredTexts(group.tokens).answers, strict=True):
                yield row, {_STATES: states[own]}
