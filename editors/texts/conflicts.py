"""Edits that contradict each other: the same question with different answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from editors.texts.requests import EditRequest

_SHOWN = 3


@dataclass(frozen=True)
class Conflict:
    """One question that was given different answers.

    Args:
        prompt: the question, as first asked.
        targets: its answers, in order.
        count: how many requests ask it; no part of what it says.
    """

    prompt: str
    targets: tuple[str, ...]
    count: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.prompt!r} → {' | '.join(map(repr, self.targets))}"


def normalised(text: str) -> str:
    """`text` without what does not change a question: case, width of characters, spaces, marks at the ends.

    >>> normalised("  What is the capital of  France? ")
    'what is the capital of france'
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).strip(" ?!.,:;\"'")


def same_answer(first: str, second: str) -> bool:
    """Whether two answers differ in nothing but what `normalised` leaves out."""
    return normalised(first) == normalised(second)


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


def told_conflicts(requests: Sequence[EditRequest], what: str) -> str:
    """How many requests contradict one another, in a line; nothing where none do.

    Args:
        requests: of one file, or one split.
        what: what they are called, such as "row(s)".
    """
    conflicts = find_conflicts(requests)
    if not conflicts:
        return ""
    count = sum(conflict.count for conflict in conflicts)
    shown = "; ".join(map(str, conflicts[:_SHOWN])) + ("; …" if len(conflicts) > _SHOWN else "")
    return f"{count:,} of {len(requests):,} {what} contradict one another, on {len(conflicts):,} question(s): {shown}"


def _conflict(same: Sequence[EditRequest]) -> Conflict | None:
    """The different answers to one question, if there are any."""
    targets: dict[str, str] = {}
    for request in same:
        targets.setdefault(normalised(request.target), request.target)
    return Conflict(same[0].prompt, tuple(targets.values()), len(same)) if len(targets) > 1 else None
