"""Hard negatives of the scope classifier, mined over a whole training set: similar prompts that ask for other facts.

Shape legend: M prompts, d embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from editors.texts.conflicts import normalised
from editors.texts.requests import EditRequest

# Prompts embedded, and compared with all others, at once.
_TOGETHER = 256


class Fact(Protocol):
    """What is asked of a record of the training set."""

    @property
    def prompt(self) -> str:
        """The edit prompt."""

    @property
    def target_new(self) -> str:
        """The answer to put in."""

    @property
    def rephrases(self) -> Sequence[str]:
        """Its paraphrases."""

    @property
    def subject(self) -> str:
        """What the fact is about; empty where unknown."""

    @property
    def ground_truth(self) -> str:
        """The true answer; empty where unknown."""

    @property
    def relation(self) -> str:
        """What of the subject is asked; empty where unknown."""


class MinedNegatives:
    """For each edit prompt the most similar ones that ask for something else.

    Two records ask for the same if a prompt or paraphrase of theirs is the same, or if they agree in the subject and in
    the true answer or the relation.

    Args:
        embed: texts to `[., d]` embeddings.
        facts: the records.
        count: edits for each prompt.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Tensor], facts: Sequence[Fact], count: int) -> None:
        group = same_facts(facts)
        first = {normalised(fact.prompt): (fact, group[i]) for i, fact in enumerate(facts)}
        self._edits = [EditRequest(fact.prompt, fact.target_new, fact.subject or None) for fact, _ in first.values()]
        self._place = {text: place for place, text in enumerate(first)}
        self._nearest = self._mine(embed, torch.tensor([number for _, number in first.values()]), count)

    @torch.no_grad()
    def _mine(self, embed: Callable[[Sequence[str]], Tensor], group: Tensor, count: int) -> list[list[int]]:
        prompts = [edit.prompt for edit in self._edits]
        starts = range(0, len(prompts), _TOGETHER)
        keys = torch.cat([embed(prompts[start : start + _TOGETHER]).cpu() for start in starts])
        nearest: list[list[int]] = []
        for start in starts:
            part = slice(start, start + _TOGETHER)
            distance = torch.cdist(keys[part], keys).masked_fill(group[part].unsqueeze(1) == group, torch.inf)
            least, places = distance.topk(min(count, len(keys)), dim=1, largest=False)
            pairs = zip(least.isfinite().tolist(), places.tolist(), strict=True)
            nearest += [[p for use, p in zip(*pair, strict=True) if use] for pair in pairs]
        return nearest

    def of(self, prompt: str) -> list[EditRequest]:
        """The edits mined for `prompt`, the most similar first; none for one that is not in the training set."""
        place = self._place.get(normalised(prompt))
        return [] if place is None else [self._edits[other] for other in self._nearest[place]]


def same_facts(facts: Sequence[Fact]) -> list[int]:
    """For each fact a number, the same for those that ask for the same, see `MinedNegatives`."""
    parent = list(range(len(facts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    seen: dict[Hashable, int] = {}
    for number, fact in enumerate(facts):
        for mark in _marks(fact):
            parent[root(number)] = root(seen.setdefault(mark, number))
    return [root(number) for number in range(len(facts))]


def _marks(fact: Fact) -> Iterator[Hashable]:
    """What two facts that ask for the same have in common."""
    yield from map(normalised, (fact.prompt, *fact.rephrases))
    for kind in ("ground_truth", "relation"):
        value = getattr(fact, kind)
        if fact.subject and value:
            yield kind, normalised(fact.subject), normalised(value)
