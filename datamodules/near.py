"""Locality texts near an edit: what else a user asks, in the edit's own style, and must not be answered by it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError
from editors.texts.conflicts import normalised
from editors.texts.neighbours import alike, filled

FAR = "far"
_TRIES = 8


@dataclass(frozen=True)
class NearLocality:
    """How often each kind of locality text comes with a training edit; weights are relative to one another.

    A kind that a record has no text of (it names no subject) gives way to the others.

    Args:
        far: a question of the record's own, or of the locality pool; half of those without a question mark get one,
            where edit prompts end in one: otherwise that mark is what tells an edit from other texts.
        other_subject: the edit's question about another subject, or a paraphrase of it.
        other_relation: another record's question about the edit's subject.
        other_prompt: another record's question.
        similar_name: the edit's question about a name that has the subject's and one word more, of another subject's
            name: "Paris" and "Paris Hilton".
        target_as_answer: share of the near texts that are answered with the edit's target, so that the model must not
            say it there; the others have the true answer where one is known.

    Raises:
        DataError: a weight is below 0, all are 0, or the share is not between 0 and 1.
    """

    far: float = 1.0
    other_subject: float = 1.0
    other_relation: float = 0.5
    other_prompt: float = 0.5
    similar_name: float = 0.25
    target_as_answer: float = 0.5

    def __post_init__(self) -> None:
        for name, weight in self.weights().items():
            if weight < 0:
                raise DataError(f"near_locality.{name} must be at least 0, got {weight}")
        if not sum(self.weights().values()):
            raise DataError("near_locality: at least one weight must be above 0")
        if not 0 <= self.target_as_answer <= 1:
            raise DataError(f"near_locality.target_as_answer is a share between 0 and 1, got {self.target_as_answer}")

    def weights(self) -> dict[str, float]:
        """The weight of each kind."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "target_as_answer"}


class NearTexts:
    """The near texts of every record, made of the other records.

    Args:
        records: the training records.
        settings: which kinds there are.
    """

    def __init__(self, records: Sequence[EditRecord], settings: NearLocality) -> None:
        self._records, self._settings = records, settings
        self._with_subject = [record for record in records if record.subject.strip()]
        self._by_template: dict[str, list[EditRecord]] = defaultdict(list)
        for record in self._with_subject:
            self._by_template[record.template].append(record)

    def kind(self, choose: random.Random) -> str:
        """A kind of locality text, by its weight."""
        weights = self._settings.weights()
        return choose.choices(list(weights), cum_weights=None, weights=list(weights.values()))[0]

    def probed(self, record: EditRecord, fits: Callable[[tuple[str, str]], bool]) -> EditRecord:
        """The record with one near text of each kind among its locality probes, scored apart by kind; always the same.

        Args:
            record: one of an evaluation.
            fits: whether a text can be encoded; others are left out.
        """
        kinds = [kind for kind, weight in self._settings.weights().items() if weight and kind != FAR]
        probes = [Probe(*pair, kind=kind) for kind in kinds for pair in self._first(kind, record) if fits(pair)]
        return replace(record, locality=(*record.locality, *probes))

    def _first(self, kind: str, record: EditRecord) -> list[tuple[str, str]]:
        """The first near text that some draws find; none where they find none."""
        choose = random.Random(f"{kind}/{record.prompt}")
        drawn = (self.text(kind, record, record.target_new, choose) for _ in range(_TRIES))
        return next(([pair] for pair in drawn if pair is not None), [])

    def text(self, kind: str, record: EditRecord, target: str, choose: random.Random) -> tuple[str, str] | None:
        """A near text of the given kind with its answer; `None` where there is none.

        Args:
            kind: one of `NearLocality.weights` but "far".
            record: the record that is edited.
            target: the answer that the edit puts in.
            choose: the choices.
        """
        found = {
            "other_subject": self._other_subject, "other_relation": self._other_relation,
            "other_prompt": self._other_prompt, "similar_name": self._similar_name,
        }[kind](record, choose)  # fmt: skip
        if found is None:
            return None
        prompt, truth = found
        known = truth and truth.casefold() != target.casefold()
        return prompt, truth if known and choose.random() >= self._settings.target_as_answer else target

    def _other_subject(self, record: EditRecord, choose: random.Random) -> tuple[str, str] | None:
        """The record's question about a subject that it was asked about elsewhere, or about any."""
        if not record.subject:
            return None
        same = self._by_template[record.template]
        other = self._another(record, same if len(same) > 1 and choose.random() < 0.5 else self._with_subject, choose)
        if other is None:
            return None
        if other.template == record.template:
            return choose.choice((other.prompt, *other.rephrases)), other.ground_truth
        return filled(choose.choice(_with_place(record)), other.subject), ""

    def _other_relation(self, record: EditRecord, choose: random.Random) -> tuple[str, str] | None:
        if not record.subject:
            return None
        other = self._another(record, self._with_subject, choose)
        if other is None or _asks_the_same(record, other):
            return None
        return filled(choose.choice(_with_place(other)), record.subject), ""

    def _similar_name(self, record: EditRecord, choose: random.Random) -> tuple[str, str] | None:
        if not record.subject:
            return None
        other = self._another(record, self._with_subject, choose)
        if other is None:
            return None
        words = other.subject.split()
        before, after = choose.choice(((f"{words[0]} ", ""), ("", f" {words[-1]}")))
        return filled(choose.choice(_with_place(record)), f"{before}{record.subject}{after}"), ""

    def _other_prompt(self, record: EditRecord, choose: random.Random) -> tuple[str, str] | None:
        other = self._another(record, self._records, choose)
        return None if other is None else (choose.choice((other.prompt, *other.rephrases)), other.ground_truth)

    @staticmethod
    def _another(record: EditRecord, records: Sequence[EditRecord], choose: random.Random) -> EditRecord | None:
        """One of the records that is about something else; `None` where some tries find none."""
        for _ in range(_TRIES):
            other = choose.choice(records)
            if other.prompt != record.prompt and not (
                record.subject and other.subject and alike(other.subject, record.subject)
            ):
                return other
        return None


def _asks_the_same(record: EditRecord, other: EditRecord) -> bool:
    """Whether both ask the same of their subjects, as far as relations and templates tell."""
    same_relation = bool(record.relation) and normalised(record.relation) == normalised(other.relation)
    return same_relation or other.template in (record.template, *record.rephrase_templates)


def _with_place(record: EditRecord) -> list[str]:
    """The templates of a record's prompts that name its subject."""
    return [template for template in (record.template, *record.rephrase_templates) if "{}" in template]
