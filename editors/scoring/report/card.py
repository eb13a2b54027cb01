"""`ReportCard`: what a user meets who asks an edited model, row by row; to and from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from editors.common.errors import ArtifactError
from editors.common.files import save_json
from editors.scoring.report.abilities import Ability
from editors.scoring.report.damage import Damage
from editors.scoring.report.intervals import Number
from editors.scoring.report.rows import Expects

SCHEMA = "hyperedit-report-1"


@dataclass(frozen=True)
class Example:
    """One probe, word by word.

    Args:
        edit: prompt and target of the edit.
        prompt: what the model was asked.
        expected: what it should say.
        before: what it said before the edit.
        after: what it said after it.
        good: whether that is as it should be.
    """

    edit: str
    prompt: str
    expected: str
    before: str
    after: str
    good: bool


@dataclass(frozen=True)
class Means:
    """A row in short.

    Args:
        n: how many probes.
        values: means by measure.
    """

    n: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class ReportRow:
    """One row.

    Args:
        row: its name, as in `editors.scoring.report.rows`.
        title: in words.
        expects: what the edited model should say.
        headline: the measure that says whether it does.
        n: how many probes.
        cases: of how many edits.
        left_out: probes for which the model has no room.
        after: means after the edit, by measure, with intervals.
        before: means of what the base model says.
        placebos: the same with edits that should not work, by kind; `None` for a kind that cannot be made.
        examples: some probes.
    """

    row: str
    title: str
    expects: Expects
    headline: str
    n: int
    cases: int
    left_out: int
    after: Mapping[str, Number]
    before: Mapping[str, float]
    placebos: Mapping[str, Means | None] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Together:
    """Some rows after several edits at once.

    Args:
        edits: how many were made together, as one.
        groups: how often.
        rows: by row its number of probes, and means by measure.
        damage: to running text, by the file's name.
    """

    edits: int
    groups: int
    rows: Mapping[str, Means]
    damage: Mapping[str, Damage] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportCard:
    """The card of an editor, or of one edit.

    Args:
        method: what made the edits.
        model: the base model.
        base_weights: hash of its weights.
        data: hash of the cases.
        cases: how many edits.
        seed: of placebos and intervals.
        protocol: how it was asked and scored, in words.
        versions: of libraries.
        rows: the rows, in order.
        together: some rows after several edits at once.
        damage: what single edits do to running text, by the file's name.
        abilities: tasks of lm-evaluation-harness before and after the first edit, if they were asked for.
        created: when.
        bad: rows of the data file that could not be used: number and error of each.
        schema: format and version.
    """

    method: str
    model: str
    base_weights: str
    data: str
    cases: int
    seed: int
    protocol: Mapping[str, str]
    versions: Mapping[str, str]
    rows: tuple[ReportRow, ...]
    together: tuple[Together, ...] = ()
    damage: Mapping[str, Damage] = field(default_factory=dict)
    abilities: tuple[Ability, ...] = ()
    created: str = ""
    bad: tuple[Mapping[str, Any], ...] = ()
    schema: str = SCHEMA

    def row(self, name: str) -> ReportRow:
        """The row of this name.

        Raises:
            KeyError: the card has none.
        """
        found = {row.row: row for row in self.rows}
        return found[name]

    def to_json(self) -> dict[str, Any]:
        """The card in plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ReportCard:
        """The card that `to_json` has made plain.

        Raises:
            ArtifactError: the values are no card of this format.
        """
        found = values.get("schema")
        if found != SCHEMA:
            raise ArtifactError(f"this is no report card that can be read: format {found!r}, wanted {SCHEMA!r}")
        try:
            parts = {
                "rows": tuple(_row(row) for row in values["rows"]),
                "together": tuple(_together(part) for part in values["together"]),
                "damage": _damage(values["damage"]),
                "abilities": tuple(Ability(**each) for each in values.get("abilities", ())),
                "bad": tuple(values["bad"]),
            }
            return cls(**{**values, **parts})
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"this report card is damaged: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write the card as JSON."""
        save_json(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path) -> ReportCard:
        """Read a card that `save` has written.

        Raises:
            ArtifactError: the file is missing, damaged, or no card.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} cannot be read as a report card: {error}") from error
        if not isinstance(values, dict):
            raise ArtifactError(f"{path} is no report card")
        return cls.from_json(values)


def _row(values: Mapping[str, Any]) -> ReportRow:
    placebos = {kind: None if each is None else Means(**each) for kind, each in values["placebos"].items()}
    numbers = {name: Number(**number) for name, number in values["after"].items()}
    examples = tuple(Example(**example) for example in values["examples"])
    return ReportRow(**{**values, "after": numbers, "placebos": placebos, "examples": examples})


def _together(values: Mapping[str, Any]) -> Together:
    rows = {name: Means(**row) for name, row in values["rows"].items()}
    return Together(**{**values, "rows": rows, "damage": _damage(values["damage"])})


def _damage(values: Mapping[str, Any]) -> dict[str, Damage]:
    return {name: Damage(**each) for name, each in values.items()}
