"""Leaks: what an editor is tested on must not be among what it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Literal

from datamodules.records import EditRecord
from editors.errors import DataError

LeakPolicy = Literal["refuse", "drop", "warn"]
_LOG = logging.getLogger(__name__)
_SHOWN_LEAKS = 10


@dataclass(frozen=True)
class Leak:
    """A text that two splits share.

    Args:
        kind: "subject", "edit prompt" or "locality prompt".
        text: the text, as the first split spells it.
        splits: names of the two splits.
        sources: where each of the two splits has it first.
    """

    kind: str
    text: str
    splits: tuple[str, str]
    sources: tuple[str, str]

    def __str__(self) -> str:
        """Return the text, and where it is where that is known."""
        return f"{self.text!r} ({' and '.join(self.sources)})" if all(self.sources) else repr(self.text)


def _subjects(record: EditRecord) -> Iterable[str]:
    return (record.subject,) if record.subject else ()


def _edit_prompts(record: EditRecord) -> Iterable[str]:
    return (record.prompt,)


def _locality_prompts(record: EditRecord) -> Iterable[str]:
    return (probe.prompt for probe in record.locality)


_TEXTS: dict[str, Callable[[EditRecord], Iterable[str]]] = {
    "subject": _subjects,
    "edit prompt": _edit_prompts,
    "locality prompt": _locality_prompts,
}


def find_leaks(splits: Mapping[str, Sequence[EditRecord]]) -> list[Leak]:
    """Find subjects, edit prompts and locality prompts that two splits share.

    Texts are compared without regard to case and to the width of blanks. Records without a subject share none.

    Args:
        splits: records by split name ("train", "val", "test").

    Returns:
        One leak per shared text, pair of splits and kind; grouped by pair, then by kind.
    """
    indexes = {name: {kind: _index(records, kind) for kind in _TEXTS} for name, records in splits.items()}
    return [
        Leak(kind, text, (first, second), (source, indexes[second][kind][key][1]))
        for first, second in combinations(indexes, 2)
        for kind in _TEXTS
        for key, (text, source) in indexes[first][kind].items()
        if key in indexes[second][kind]
    ]


def _index(records: Sequence[EditRecord], kind: str) -> dict[str, tuple[str, str]]:
    """Map each text, folded, to its first spelling and source."""
    index: dict[str, tuple[str, str]] = {}
    for record in records:
        for text in _TEXTS[kind](record):
            index.setdefault(_fold(text), (text, record.source))
    return index


def handle_leaks(splits: Mapping[str, Sequence[EditRecord]], policy: LeakPolicy) -> dict[str, list[EditRecord]]:
    """Look for leaks between splits and treat them as `policy` says.

    Args:
        splits: records by split name ("train", "val", "test").
        policy: "refuse" leaky splits; "drop" from the earlier split what it shares with a later one; or only "warn".

    Returns:
        The splits to use.

    Raises:
        DataError: two splits share a subject, an edit prompt or a locality prompt, and the policy is "refuse".
    """
    kept = {name: list(records) for name, records in splits.items()}
    leaks = find_leaks(splits)
    if not leaks:
        return kept
    groups = groupby(leaks, key=lambda leak: (leak.splits, leak.kind))
    message = "Splits leak into each other:\n  " + "\n  ".join(_describe(*key, list(group)) for key, group in groups)
    if policy == "refuse":
        raise DataError(
            f"{message}\nSet on_leak: drop to leave these records out of the earlier split, choose splits that were "
            "made without leaks, or set on_leak: warn to go on with results that overstate what the editor can do."
        )
    if policy == "drop":
        for split, records in kept.items():
            kept[split] = _without_leaks(records, [leak for leak in leaks if leak.splits[0] == split])
        dropped = {name: len(splits[name]) - len(kept[name]) for name in kept}
        _LOG.warning("%s\nDropped (on_leak: drop): %s", message, dropped)
    else:
        _LOG.warning("%s\nUsed all the same (on_leak: warn): results overstate what the editor can do.", message)
    return kept


def _without_leaks(records: Sequence[EditRecord], leaks: Sequence[Leak]) -> list[EditRecord]:
    """The records none of whose texts is in `leaks`."""
    shared = {kind: {_fold(leak.text) for leak in leaks if leak.kind == kind} for kind in _TEXTS}
    return [r for r in records if not any(_fold(t) in shared[kind] for kind, texts in _TEXTS.items() for t in texts(r))]


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _describe(pair: tuple[str, str], kind: str, leaks: Sequence[Leak]) -> str:
    shown = [str(leak) for leak in leaks[:_SHOWN_LEAKS]]
    if len(leaks) > _SHOWN_LEAKS:
        shown.append(f"... and {len(leaks) - _SHOWN_LEAKS} more")
    return "\n    ".join([f"{pair[0]} and {pair[1]} share {len(leaks)} {kind}(s):", *shown])
