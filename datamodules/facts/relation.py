"""`Relation`: one functional relation with its facts, its phrasings, and what follows from editing it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from editors.common.errors import DataError

_FEWEST_TEMPLATES = 4


@dataclass(frozen=True)
class Hop:
    """A question one step away from a fact: the answer to the fact leads to the answer to this question.

    Args:
        question: the question, with `{}` for the subject of the fact.
        answers: answer of the fact -> answer of the question.
    """

    question: str
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Relation:
    """Facts of one kind, each subject with exactly one answer.

    Args:
        name: name of the relation ("country_capital").
        templates: phrasings with `{}` for the subject; questions end in "?", the others are cloze prompts.
        facts: subject -> answer, both as they stand in running text ("the Netherlands" -> "Amsterdam").
        also_true: subject -> further answers that hold too, which an edit must therefore not use as a false one.
        moves: relations whose answer for the same subject no longer holds once this relation is edited.
        hops: questions that follow from an edited fact.

    Raises:
        DataError: there are too few templates or only one form of them; a template has no single `{}`; a subject
            equals its answer or stands in a template, so that the prompt would give the answer or be ambiguous.
    """

    name: str
    templates: tuple[str, ...]
    facts: Mapping[str, str]
    also_true: Mapping[str, frozenset[str]] = field(default_factory=dict)
    moves: frozenset[str] = frozenset()
    hops: tuple[Hop, ...] = ()

    def __post_init__(self) -> None:
        self._check_templates()
        self._check_facts()

    def _check_templates(self) -> None:
        questions = sum(template.endswith("?") for template in self.templates)
        if len(self.templates) < _FEWEST_TEMPLATES or questions in (0, len(self.templates)):
            raise DataError(
                f"relation {self.name!r} has {questions} questions among {len(self.templates)} templates; it needs at "
                f"least {_FEWEST_TEMPLATES} templates with both questions and cloze prompts: add the missing ones"
            )
        broken = [text for text in (*self.templates, *(hop.question for hop in self.hops)) if text.count("{}") != 1]
        if broken:
            raise DataError(f"relation {self.name!r}: {broken} must hold {{}} exactly once, where the subject goes")

    def _check_facts(self) -> None:
        for subject, answer in self.facts.items():
            if not subject.strip() or not answer.strip() or subject == answer:
                raise DataError(
                    f"relation {self.name!r}: {subject!r} -> {answer!r} must be two different non-empty texts: "
                    "leave this fact out"
                )
            if any(subject in template for template in self.templates):
                raise DataError(
                    f"relation {self.name!r}: subject {subject!r} also stands in a template: reword the template"
                )

    def prompts(self, subject: str) -> list[str]:
        """Every phrasing of the fact about `subject`, in the order of the templates."""
        return [template.format(subject) for template in self.templates]

    def false_answers(self, subject: str) -> list[str]:
        """The relation's other answers, sorted, without any that is true for `subject` too."""
        true = {self.facts[subject]} | self.also_true.get(subject, frozenset())
        return sorted(self._subjects_of.keys() - true)

    def disturbed_by(self, subject: str, target_new: str) -> set[str]:
        """Subjects whose own answer may change once `subject` is edited to `target_new`.

        These are the subject itself, the entities that are the old and the new answer, and, where only one subject
        holds the new answer (one city is the capital of one country), the subject that would lose it.
        """
        holders = self._subjects_of.get(target_new, [])
        return {subject, self.facts[subject], target_new, *(holders if len(holders) == 1 else ())}

    @cached_property
    def _subjects_of(self) -> dict[str, list[str]]:
        subjects_of: dict[str, list[str]] = defaultdict(list)
        for subject, answer in self.facts.items():
            subjects_of[answer].append(subject)
        return subjects_of
