"""Edits that contradict each other: the same question with different answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from editors.texts.requests import EditRequest


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
    """`text` without what does not change a question: case, width of characters, spaces, marks at the ends.

    >>> normalised("  What is the capital of  France? ")
    'what is the capital of france'
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(" ?!.,:;\"'")


def find_conflicts(requests: Iterable[EditRequest]) -> list[Conflict]:
    """Facts that different targets are asked for.

    Two requests are about the same fact if their normalised prompts are equal, or if both name subject and relation and
    these are. A paraphrase is not recognised otherwise.

    >>> question = "What is the capital of France?"
    >>> requests = [EditRequest(question, "Cairo"), EditRequest(question.lower(), "Rome"), EditRequest("Who?", "Ann")]
    >>> print(*find_conflicts(requests))
    'What is the capital of France?' → 'Cairo' | 'Rome'
    """
    same: dict[tuple[str, ...], list[EditRequest]] = {}
    for request in requests:
        same.setdefault((normalised(request.prompt),), []).append(request)
        if request.subject is not None and request.relation is not None:
            same.setdefault((normalised(request.subject), normalised(request.relation)), []).append(request)
    # Requests of one wording that also name their fact are found twice.
    return list(dict.fromkeys(conflict for group in same.values() if (conflict := _conflict(group)) is not None))


def _conflict(same: Sequence[EditRequest]) -> Conflict | None:
    """The different answers to one question, if there are any."""
    targets: dict[str, str] = {}
    for request in same:
        targets.setdefault(normalised(request.target), request.target)
    return Conflict(same[0].prompt, tuple(targets.values())) if len(targets) > 1 else None
