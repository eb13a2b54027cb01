"""The factors that edits of the unedited model are made from, kept for each text: the editor has no part in them.

Shape legend: B texts, T tokens, N answer tokens, E episodes, d hidden width, w width of a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from editors.lm.batching.bucketing import length_buckets
from editors.lm.cache.files import Entry
from editors.lm.cache.store import TensorStore
from editors.lm.cache.texts import AnsweredTexts
from editors.lm.losses import episode_means
from editors.lm.signal import EditSignal, Factors
from editors.texts.batches import TokenBatch

# Names of an entry's tensors: these two, and "u SITE" and "delta SITE" with a row for each token of the text. An input
# that several sites read is kept once, as "u SITE SITE".
_PREDICTED, _LOSS = "predicted", "loss"


class CachedFactors:
    """What `FrozenLM.capture` says of each text, without an edit.

    Args:
        store: where it is kept.
        capture: makes the signal of some texts, given their episodes' number and frozen prefix.
    """

    def __init__(self, store: TensorStore, capture: Callable[[TokenBatch, int, Tensor | None], EditSignal]) -> None:
        self.store = store
        self._capture = capture

    def signal(self, tokens: TokenBatch, num_episodes: int, hidden: Tensor | None) -> EditSignal:
        """As `FrozenLM.capture` makes it, but only texts that are not known are run; `u` is zero at padding.

        Args:
            tokens: the edit texts.
            num_episodes: E.
            hidden: `[B, T, d]` their frozen prefix.
        """
        texts = AnsweredTexts(tokens)
        device = tokens.input_ids.device
        entries = self.store.complete(texts.keys, device, lambda missing: self._run(tokens, hidden, missing))
        predicted = texts.in_order([entry[_PREDICTED] for entry in entries])
        loss, _ = episode_means(torch.cat([entry[_LOSS] for entry in entries]), tokens.episode, num_episodes)
        return EditSignal(_laid_out(entries, tokens), tokens, predicted, loss, num_episodes)

    def _run(self, tokens: TokenBatch, hidden: Tensor | None, rows: list[int]) -> Iterator[tuple[int, Entry]]:
        for bucket in length_buckets([tokens], [hidden], rows):
            count = bucket.tokens.num_texts
            # Each text an episode of its own: then the loss of each is known.
            apart = replace(bucket.tokens, episode=torch.arange(count, device=tokens.episode.device))
            yield from zip(bucket.rows, _entries(self._capture(apart, count, bucket.hidden)), strict=True)


def _entries(signal: EditSignal) -> Iterator[Entry]:
    """What a signal says of each of its texts, which are padded on the right and episodes of their own."""
    parts = {f"delta {site}": factors.delta for site, factors in signal.factors.items()}
    readers: dict[int, list[str]] = {}
    for site, factors in signal.factors.items():
        readers.setdefault(id(factors.u), []).append(site)
    parts |= {" ".join(["u", *sites]): signal.factors[sites[0]].u for sites in readers.values()}
    lengths = signal.tokens.attention_mask.sum(dim=1).tolist()
    answers = AnsweredTexts(signal.tokens).answers
    for row, (length, own) in enumerate(zip(lengths, answers, strict=True)):
        tables = {name: part[row, :length] for name, part in parts.items()}
        yield {**tables, _PREDICTED: signal.predicted[own], _LOSS: signal.loss[row : row + 1]}


def _laid_out(entries: Sequence[Entry], tokens: TokenBatch) -> dict[str, Factors]:
    """The factors of all texts as `[B, T, w]`, each at its tokens' places and zero at padding."""
    places = tokens.attention_mask.flatten().nonzero()[:, 0]
    inputs: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    for name in entries[0]:
        kind, *sites = name.split(" ")
        if sites:
            rows = torch.cat([entry[name] for entry in entries])
            table = rows.new_zeros(tokens.attention_mask.numel(), rows.shape[1]).index_copy_(0, places, rows)
            of_kind = inputs if kind == "u" else deltas
            of_kind |= dict.fromkeys(sites, table.unflatten(0, tokens.attention_mask.shape))
    return {site: Factors(inputs[site], delta) for site, delta in deltas.items()}
