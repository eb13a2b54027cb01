"""Edits that contradict each other: the same question with different answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from editors.requests import EditRequest


@dataclass(frozen=True)
class Conflict:
    """One question that was given different answers.

    Args:
        prompt: the question, as first asked.
        targets: its answers, in order.
    """

    prompt: str
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.prompt!r} → {' | '.join(map(repr, self.targets))}"


def normalised(text: str) -> str:
    """`text` without what does not change a question: case, width of characters, spaces, marks at the ends."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(" ?!.,:;\"'")


def find_conflicts(requests: Iterable[EditRequest]) -> list[Conflict]:
    """Questions (subject and relation in one text) asked more than once with different targets.

    Two requests ask the same if their normalised prompts are equal; a paraphrase is not recognised.
    """
    asked: dict[str, list[EditRequest]] = {}
    for request in requests:
        asked.setdefault(normalised(request.prompt), []).append(request)
    found = []
    for same in asked.values():
        targets: dict[str, str] = {}
        for request in same:
            targets.setdefault(normalised(request.target), request.target)
        if len(targets) > 1:
            found.append(Conflict(same[0].prompt, tuple(targets.values())))
    return found
