"""`EditRecord`: the one typed form every data set is read into, and the checks that keep broken rows out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from datamodules.json_files import Row, as_text
from editors.common.errors import DataError
from editors.texts.json_documents import shown
from editors.texts.neighbours import template_of
from editors.texts.requests import EditRequest, about

_LOG = logging.getLogger(__name__)
_SHOWN_FAULTS = 20
_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Probe:
    """A question with its answer, used to test locality (the answer must stay) or portability (it must follow).

    Args:
        prompt: the question.
        answer: its answer.
        kind: a name for probes that are scored apart ("Relation_Specificity"); empty for the data set's own.
        source: file and row of a probe that belongs to no record, for error messages; no part of what it says.
        near: how it is near the edit, where the data set says so (`SAME_QUESTION` or `OTHER_RELATION` of
            `editors.scoring.report.cases`); no part of what it says.

    Raises:
        DataError: `prompt` or `answer` is not a string, or is blank.
    """

    prompt: str
    answer: str
    kind: str = ""
    source: str = field(default="", compare=False, repr=False)
    near: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        as_text(self.prompt, "prompt")
        as_text(self.answer, "answer")


@dataclass(frozen=True)
class EditRecord:
    """One fact to change, with everything that is needed to train on it and to judge the edit.

    Args:
        prompt: the edit prompt ("What is the capital of France?").
        target_new: the answer the edited model must give.
        subject: the entity the fact is about; empty where the data set names none. Must occur in `prompt`, where "{}"
            may stand for it.
        ground_truth: the true answer before the edit; empty where it is unknown.
        rephrases: paraphrases of `prompt` (generality).
        locality: questions whose answers must not move.
        portability: questions that follow from the edited fact, by kind ("Reasoning", "Subject_Aliasing", ...).
        relation: id or name of the relation; empty where unknown.
        source: file and row the record came from, for error messages.

    Raises:
        DataError: a required text is blank or of the wrong type, or the subject is not in the prompt.

    >>> EditRecord("Who rules France?", "Ann", subject="france")
    Traceback (most recent call last):
    editors.common.errors.DataError: subject 'france' is not in prompt 'Who rules France?'; spell it as there
    """

    prompt: str
    target_new: str
    subject: str = ""
    ground_truth: str = ""
    rephrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    relation: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        as_text(self.prompt, "prompt")
        as_text(self.target_new, "target_new")
        for name in ("subject", "ground_truth", "relation"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} must be text (empty where unknown), got {shown(getattr(self, name))}")
            if getattr(self, name).strip():
                as_text(getattr(self, name), name)
        if not isinstance(self.rephrases, tuple):
            raise DataError(f"rephrases must be a tuple of texts, got {shown(self.rephrases)}")
        for index, text in enumerate(self.rephrases):
            as_text(text, f"rephrases[{index}]")
        object.__setattr__(self, "prompt", about(self.prompt, self.subject))
        object.__setattr__(self, "rephrases", tuple(about(text, self.subject) for text in self.rephrases))
        if self.subject and self.subject not in self.prompt:
            raise DataError(f"subject {self.subject!r} is not in prompt {self.prompt!r}; spell it as there")

    def request(self, target: str | None = None) -> EditRequest:
        """The edit that this record asks for.

        Args:
            target: another answer than the record's.
        """
        named = {name: getattr(self, name) for name in ("subject", "relation") if getattr(self, name).strip()}
        return EditRequest(self.prompt, target or self.target_new, **named)

    @property
    def template(self) -> str:
        """The prompt with its subject taken out.

        >>> EditRecord("What is the capital of France?", "Cairo", subject="France").template
        'What is the capital of {}?'
        """
        return self._template_of(self.prompt)

    @property
    def rephrase_templates(self) -> tuple[str, ...]:
        """The paraphrases with the subject taken out."""
        return tuple(self._template_of(text) for text in self.rephrases)

    def _template_of(self, text: str) -> str:
        return template_of(text, self.subject) or text


def parse_rows(
    rows: Iterable[Row], parse: Callable[[Row], _Parsed], path: Path | str, *, skip_invalid: bool = False
) -> list[_Parsed]:
    """Parse every row of a data file; report all broken rows at once.

    Args:
        rows: raw rows, as loaded from `path`.
        parse: turns one row into a record; a `DataError` marks the row as broken.
        path: the file, for the messages.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: rows are broken and `skip_invalid` is false; or no row is left.
    """
    parsed: list[_Parsed] = []
    faults: list[str] = []
    for row in rows:
        try:
            if row.fault:
                raise DataError(row.fault)
            parsed.append(parse(row))
        except DataError as error:
            faults.append(f"{row.source}: {error}")
    if faults:
        report_faults(faults, len(parsed) + len(faults), path, skip_invalid=skip_invalid)
    if not parsed:
        raise DataError(f"{path}: no usable row; a data set needs at least one")
    return parsed


def report_faults(
    faults: Sequence[str],
    total: int,
    place: Path | str,
    *,
    skip_invalid: bool,
    remedy: str = "Mend the file",
) -> None:
    """Refuse broken rows, or log that they are left out.

    Args:
        faults: for each broken row where it is and what is wrong.
        total: how many rows were looked at.
        place: where the rows are.
        skip_invalid: log instead of refusing.
        remedy: what to do about the faults.

    Raises:
        DataError: `skip_invalid` is false.
    """
    listed = "\n  ".join(faults[:_SHOWN_FAULTS])
    more = f"\n  ... and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    message = f"{place}: {len(faults)} of {total} row(s) are broken\n  {listed}{more}"
    if not skip_invalid:
        raise DataError(f"{message}\n{remedy}, or set skip_invalid: true to leave these rows out.")
    _LOG.warning("%s\nThese rows were left out (skip_invalid).", message)
