"""`Probe`: one text that is asked before and after an edit; and the probes of each case, made from all cases."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editors.scoring.report import rows
from editors.scoring.report.cases import OTHER_RELATION, SAME_QUESTION, ReportCase
from editors.scoring.report.rows import Expects, kind_of, near_row, portability_row
from editors.scoring.report.unrelated import EVERYDAY_QUESTIONS, PLAIN_PROMPTS
from editors.scoring.report.wording import (
    as_question,
    in_lower_case,
    in_passage,
    similar_name,
    with_typo,
    without_question_mark,
)
from editors.texts.forms import chat_prompt, has_chat_template, in_form
from editors.texts.neighbours import alike, other_questions, same_question, template_of
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Most probes of a case in one row. Its fixed prompts are others for every case.
MOST = 2
# Subjects of other cases that are tried; some are too like the case's own.
_SUBJECTS = 8


@dataclass(frozen=True)
class Probe:
    """A text that is asked before and after an edit.

    Args:
        row: the row of the card that it counts in.
        prompt: what the model reads.
        expects: the target, an answer of the data, or what the model said before.
        answer: the target, or the data's answer; empty where the data has none.
    """

    row: str
    prompt: str
    expects: Expects
    answer: str


class ProbeMaker:
    """Makes the probes of each case; what a case lacks is made from the others. The same cases give the same probes.

    Args:
        cases: all cases of a report.
        tokenizer: of the base model; where it has no chat template the rows in chat form are left out.
    """

    def __init__(self, cases: Sequence[ReportCase], tokenizer: PreTrainedTokenizerBase) -> None:
        self._cases, self._tokenizer = cases, tokenizer
        self._chats = has_chat_template(tokenizer)
        self._templates = [template_of(case.request.prompt, case.request.subject) for case in cases]
        self._subjects: dict[str | None, list[str]] = defaultdict(list)
        self._relations: dict[str, set[str]] = defaultdict(set)
        self._by_relation: dict[str, list[str]] = defaultdict(list)
        for case, template in zip(cases, self._templates, strict=True):
            subject, relation = case.request.subject, case.request.relation
            if subject is not None:
                self._subjects[template].append(subject)
                if relation is not None and template is not None:
                    self._relations[subject.casefold()].add(relation)
                    self._by_relation[relation].append(template)

    def probes(self, number: int) -> list[Probe]:
        """The probes of the case with this number; none comes twice in a row."""
        case = self._cases[number]
        choose = random.Random(f"{case.request.prompt}\n{case.request.target}")
        texts = [*self._holding(case, choose), *self._staying(number, choose), *self._following(case)]
        probes = [Probe(row, prompt, kind_of(row).expects, answer) for row, prompt, answer in texts if prompt]
        return list({(probe.row, probe.prompt): probe for probe in probes}.values())

    def _holding(self, case: ReportCase, choose: random.Random) -> Iterable[tuple[str, str | None, str]]:
        """Texts to which the target is the answer."""
        request, target = case.request, case.request.target
        rephrases = list(case.rephrases[:MOST])
        wordings = {
            rows.EDIT: request.prompt,
            rows.NO_QUESTION_MARK: without_question_mark(request.prompt),
            rows.LOWER_CASE: in_lower_case(request.prompt),
            rows.TYPO: with_typo(request.prompt, request.subject, choose),
            rows.PASSAGE: in_passage(request.prompt, choose),
        }
        texts = [*wordings.items(), *((rows.PARAPHRASE, text) for text in rephrases)]
        yield from ((row, None if text is None else self._asked(request, text), target) for row, text in texts)
        yield rows.CHAT_EDIT, self._chat(request.prompt), target
        yield from ((rows.CHAT_PARAPHRASE, self._chat(text), target) for text in rephrases[:1])

    def _staying(self, number: int, choose: random.Random) -> Iterable[tuple[str, str | None, str]]:
        """Texts to which the model must say what it said before."""
        case = self._cases[number]
        request = case.request
        near = {kind: [(prompt, answer) for prompt, answer in pairs] for kind, pairs in case.near.items()}
        near.setdefault(SAME_QUESTION, [(text, "") for text in self._same_question(number, choose)])
        near.setdefault(OTHER_RELATION, [(text, "") for text in self._other_relation(request)])
        written = [(near_row(kind), *pair) for kind, pairs in near.items() for pair in pairs[:MOST]]
        written += [(rows.NEAR_SUBJECT, text, "") for text in _similar(request, choose)]
        written += [(rows.UNRELATED_QUESTION, text, "") for text in self._unrelated_questions(number, choose)]
        written += [(rows.LOCALITY, *pair) for pair in case.locality[:MOST]]
        questions = [(as_question(prompt), answer) for prompt, answer in case.locality[:MOST]]
        written += [(rows.LOCALITY_QUESTION, text, answer) for text, answer in questions if text is not None]
        yield from ((row, self._asked(request, text), answer) for row, text, answer in written)
        yield from ((rows.UNRELATED, text, "") for text in choose.sample(PLAIN_PROMPTS, MOST))
        yield from ((rows.CHAT_UNRELATED, self._chat(text), "") for text in choose.sample(EVERYDAY_QUESTIONS, 1))
        yield from ((rows.CHAT_NEAR, self._chat(text), answer) for text, answer in near[SAME_QUESTION][:1])

    def _following(self, case: ReportCase) -> Iterable[tuple[str, str, str]]:
        """Texts whose answers follow from the edit."""
        for kind, pairs in case.portability.items():
            row = portability_row(kind)
            yield from ((row, self._asked(case.request, prompt), answer) for prompt, answer in pairs[:MOST])

    def _asked(self, request: EditRequest, text: str) -> str:
        return in_form(self._tokenizer, text, request.form)

    def _chat(self, question: str) -> str | None:
        return chat_prompt(self._tokenizer, question) if self._chats else None

    def _same_question(self, number: int, choose: random.Random) -> list[str]:
        """The question about subjects of other cases, those of the same template first."""
        own = self._subjects.get(self._templates[number], [])
        others = [case.request.subject for case in self._cases if case.request.subject is not None]
        chosen = [*choose.sample(own, min(_SUBJECTS, len(own))), *choose.sample(others, min(_SUBJECTS, len(others)))]
        return same_question(self._cases[number].request, dict.fromkeys(chosen))[:MOST]

    def _other_relation(self, request: EditRequest) -> list[str]:
        """Templates with this subject, of relations that the data has of some subject together with its own."""
        if request.relation is None or request.subject is None:
            return []
        together = {
            relation for known in self._relations.values() if request.relation in known for relation in sorted(known)
        }
        templates = [
            template
            for relation in sorted(together - {request.relation})
            for template in dict.fromkeys(self._by_relation[relation])
        ]
        return other_questions(request, templates)[:MOST]

    def _unrelated_questions(self, number: int, choose: random.Random) -> list[str]:
        """Prompts of other cases, of other templates and about other subjects."""
        request, template = self._cases[number].request, self._templates[number]
        found: list[str] = []
        for other in choose.sample(range(len(self._cases)), min(4 * MOST, len(self._cases))):
            prompt, subject = self._cases[other].request.prompt, self._cases[other].request.subject
            same = prompt == request.prompt or (template is not None and self._templates[other] == template)
            related = subject is not None and request.subject is not None and alike(subject, request.subject)
            if not same and not related:
                found.append(prompt)
        return found[:MOST]


def _similar(request: EditRequest, choose: random.Random) -> list[str]:
    """The question about a similar name."""
    if request.subject is None or request.subject not in request.prompt:
        return []
    return [request.prompt.replace(request.subject, similar_name(request.subject, choose))]
