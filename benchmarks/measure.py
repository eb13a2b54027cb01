"""What all benchmarks measure with: CPU time by phase, and the unit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from editors.lm.cache.store import PrefixCache
from editors.texts.batches import EncodedText, TokenBatch
from editors.texts.episodes import EditBatch
from editors.training.learned import LearnedEditor

# Room for the texts of any benchmark.
_CACHE = PrefixCache(megabytes=4096, factors=True)


class PhaseClock:
    """Charges the CPU time of this process to one phase at a time, so that the phases add up to the whole.

    Args:
        names: for those phases of a model's work that are charged apart the names they are charged under.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    @property
    def phase(self) -> str | None:
        """The phase that is charged now."""
        return self._phase

    def enter(self, phase: str | None) -> str | None:
        """Charge what follows to `phase` (`None`: to none). Returns the phase that was charged until now."""
        now = time.process_time()
        if self._phase is not None:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        previous, self._phase, self._since = self._phase, phase, now
        return previous

    def take(self) -> dict[str, float]:
        """Stop; hand out the seconds of each phase since the last `take`."""
        self.enter(None)
        seconds, self.seconds = self.seconds, {}
        return seconds

    @contextmanager
    def charging(self, phase: str) -> Iterator[None]:
        """Inside this context, charge `phase` of a model's work, if it is one that is charged apart."""
        outer = self.enter(self._names.get(phase, self._phase))
        try:
            yield
        finally:
            self.enter(outer)


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU-seconds, over all threads, of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


class UnitPass:
    """One plain forward and backward pass of the base model on one text, with the gradients of all its weights.

    Args:
        model: the base model; its parameters are frozen again after each pass.
        text: an edit prompt with its target.
    """

    def __init__(self, model: PreTrainedModel, text: EncodedText) -> None:
        self._model = model
        self._ids = torch.tensor([text.ids], device=model.device)

    def __call__(self) -> float:
        """CPU-seconds of a pass in a row of passes.

        It is the second of two. How many pages the gradients of the first have to fetch from the system depends on what
        the process freed before; that alone moves it by a third either way.
        """
        self._model.requires_grad_(requires_grad=True)
        try:
            with torch.enable_grad():
                return [cpu_seconds(self._pass) for _ in range(2)][1]
        finally:
            self._model.zero_grad(set_to_none=True)
            self._model.requires_grad_(requires_grad=False)

    def _pass(self) -> None:
        self._model.zero_grad(set_to_none=True)
        self._model(input_ids=self._ids, labels=self._ids).loss.backward()


def learn_texts(editor: LearnedEditor, batches: Iterable[EditBatch]) -> None:
    """Keep all that the frozen model computes on some training batches, as it is kept after a first epoch.

    Args:
        editor: forgets what it kept before.
        batches: its training batches.
    """
    lm = editor.lm
    lm.use_cache(_CACHE)
    for batch in batches:
        edit, _, locality = lm.prefix(training_texts(batch))
        lm.capture(batch.requests.with_prefix(edit))
        lm.base_answer_logits(batch.locality, locality)


def training_texts(batch: EditBatch) -> list[TokenBatch]:
    """Edit prompts, paraphrases and locality texts."""
    return [batch.edit, batch.rephrase, batch.locality]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def verdict(judged: bool, within: bool) -> str:
    """How a table says whether a target is met; empty where there is none."""
    return ("[green]yes[/]" if within else "[red]no[/]") if judged else ""
