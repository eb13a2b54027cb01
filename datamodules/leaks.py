"""Leaks: what an editor is tested on must not be among what it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Literal

from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

LeakPolicy = Literal["refuse", "drop", "warn"]
_LOG = logging.getLogger(__name__)
_SHOWN_LEAKS = 10


@dataclass(frozen=True)
class Leak:
    """A text that two splits share.

    Args:
        kind: "subject", "edit prompt" or "locality prompt"; between the locality pool and a split also "paraphrase".
        text: the text, as the first split spells it.
        splits: names of the two splits; the first may be "locality pool".
        sources: where each of the two splits has it first.
    """

    kind: str
    text: str
    splits: tuple[str, str]
    sources: tuple[str, str]

    def __str__(self) -> str:
        """Return the text, and where it is where that is known."""
        known = " and ".join(filter(None, self.sources))
        return f"{self.text!r} ({known})" if known else repr(self.text)


def _subjects(record: EditRecord) -> Iterable[str]:
    return (record.subject,) if record.subject else ()


def _edit_prompts(record: EditRecord) -> Iterable[str]:
    return (record.prompt,)


def _paraphrases(record: EditRecord) -> Iterable[str]:
    return record.rephrases


def _locality_prompts(record: EditRecord) -> Iterable[str]:
    return (probe.prompt for probe in record.locality)


_Texts = Mapping[str, Callable[[EditRecord], Iterable[str]]]
_TEXTS: _Texts = {"subject": _subjects, "edit prompt": _edit_prompts, "locality prompt": _locality_prompts}
# A pool question asks for the unedited answer: it must not be one that an edit is judged by, in any wording.
_POOL_TEXTS: _Texts = {"edit prompt": _edit_prompts, "paraphrase": _paraphrases, "locality prompt": _locality_prompts}


def find_leaks(splits: Mapping[str, Sequence[EditRecord]]) -> list[Leak]:
    """Find subjects, edit prompts and locality prompts that two splits share.

    Texts are compared without regard to case and to the width of blanks. Records without a subject share none.

    Args:
        splits: records by split name ("train", "val", "test").

    Returns:
        One leak per shared text, pair of splits and kind; grouped by pair, then by kind.

    >>> train = [EditRecord("What is the capital of France?", "Cairo", subject="France", source="a.json row 7")]
    >>> test = [EditRecord("Who founded france?", "Ann", subject="france", source="b.json row 1")]
    >>> print(*find_leaks({"train": train, "test": test}))
    'France' (a.json row 7 and b.json row 1)
    """
    indexes = {
        name: {kind: _index(records, texts, _fold) for kind, texts in _TEXTS.items()}
        for name, records in splits.items()
    }
    return [
        Leak(kind, text, (first, second), (source, indexes[second][kind][key][1]))
        for first, second in combinations(indexes, 2)
        for kind in _TEXTS
        for key, (text, source) in indexes[first][kind].items()
        if key in indexes[second][kind]
    ]


def find_pool_leaks(pool: Sequence[Probe], splits: Mapping[str, Sequence[EditRecord]]) -> list[Leak]:
    """Find questions of the locality pool that are edit prompts, paraphrases or locality prompts of a held-out split.

    As in `find_leaks`; besides, "nq question: " in front and a question mark at the end make no difference.

    Args:
        pool: the pool's questions.
        splits: records of the held-out splits ("val", "test").
    """
    questions: dict[str, Probe] = {}
    for probe in pool:
        questions.setdefault(_fold_question(probe.prompt), probe)
    return [
        Leak(kind, questions[key].prompt, ("locality pool", name), (questions[key].source, source))
        for name, records in splits.items()
        for kind, texts in _POOL_TEXTS.items()
        for key, (_, source) in _index(records, texts, _fold_question).items()
        if key in questions
    ]


def _index(
    records: Sequence[EditRecord],
    texts: Callable[[EditRecord], Iterable[str]],
    fold: Callable[[str], str],
) -> dict[str, tuple[str, str]]:
    """Map each text, folded, to its first spelling and source."""
    index: dict[str, tuple[str, str]] = {}
    for record in records:
        for text in texts(record):
            index.setdefault(fold(text), (text, record.source))
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
    leaks = find_leaks(splits)
    if not _to_be_dropped(leaks, policy):
        return {name: list(records) for name, records in splits.items()}
    kept = {
        split: _without_leaks(records, [leak for leak in leaks if leak.splits[0] == split])
        for split, records in splits.items()
    }
    _LOG.warning("Dropped (on_leak: drop): %s", {name: len(splits[name]) - len(kept[name]) for name in kept})
    return kept


def handle_pool_leaks(
    pool: Sequence[Probe], splits: Mapping[str, Sequence[EditRecord]], policy: LeakPolicy
) -> list[Probe]:
    """Look for leaks of the locality pool into held-out splits and treat them as `policy` says.

    Args:
        pool: the pool's questions.
        splits: records by split name; the training split is left out of account.
        policy: as in `handle_leaks`; "drop" leaves the shared questions out of the pool.

    Returns:
        The pool to use.

    Raises:
        DataError: the pool shares a question with a held-out split, and the policy is "refuse".
    """
    leaks = find_pool_leaks(pool, {name: records for name, records in splits.items() if name != "train"})
    if not _to_be_dropped(leaks, policy):
        return list(pool)
    shared = {_fold_question(leak.text) for leak in leaks}
    kept = [probe for probe in pool if _fold_question(probe.prompt) not in shared]
    _LOG.warning("Dropped (on_leak: drop): %s", {"locality pool": len(pool) - len(kept)})
    return kept


def _to_be_dropped(leaks: Sequence[Leak], policy: LeakPolicy) -> bool:
    """Refuse the leaks, or warn of them. Returns whether there are some to drop."""
    if not leaks:
        return False
    groups = groupby(leaks, key=lambda leak: (leak.splits, leak.kind))
    message = "Splits leak into each other:\n  " + "\n  ".join(_describe(*key, list(group)) for key, group in groups)
    if policy == "refuse":
        raise DataError(
            f"{message}\nSet on_leak: drop to leave these records out of the earlier split, choose splits that were "
            "made without leaks, or set on_leak: warn to go on with results that overstate what the editor can do."
        )
    if policy == "warn":
        message += "\nUsed all the same (on_leak: warn): results overstate what the editor can do."
    _LOG.warning("%s", message)
    return policy == "drop"


def _without_leaks(records: Sequence[EditRecord], leaks: Sequence[Leak]) -> list[EditRecord]:
    """The records none of whose texts is in `leaks`."""
    shared = {kind: {_fold(leak.text) for leak in leaks if leak.kind == kind} for kind in _TEXTS}
    return [r for r in records if not any(_fold(t) in shared[kind] for kind, texts in _TEXTS.items() for t in texts(r))]


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _fold_question(text: str) -> str:
    return _fold(text).removeprefix("nq question: ").rstrip(" ?")


def _describe(pair: tuple[str, str], kind: str, leaks: Sequence[Leak]) -> str:
    shown = [str(leak) for leak in leaks[:_SHOWN_LEAKS]]
    if len(leaks) > _SHOWN_LEAKS:
        shown.append(f"... and {len(leaks) - _SHOWN_LEAKS} more")
    return "\n    ".join([f"{pair[0]} and {pair[1]} share {len(leaks)} {kind}(s):", *shown])
