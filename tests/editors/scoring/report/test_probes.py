"""Tests of `editors.scoring.report.probes`, `rows` and `wording`."""

from __future__ import annotations

import random
from typing import Any

from editors.scoring.report import rows
from editors.scoring.report.cases import OTHER_RELATION, SAME_QUESTION, ReportCase
from editors.scoring.report.probes import Probe, ProbeMaker
from editors.scoring.report.wording import as_question, in_lower_case, with_typo, without_question_mark
from editors.texts.requests import EditRequest
from tests.tiny_models import words_tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[answer]"


def case(template: str, subject: str, relation: str | None = None, **texts: Any) -> ReportCase:
    return ReportCase(EditRequest(template.format(subject), "Osten", subject, relation), **texts)


CAPITAL, RIVER = "What is the capital of {}?", "Which river crosses {}?"
CASES = [
    case(CAPITAL, "Belia", "capital", rephrases=("Belia's seat is",), locality=(("the moon is", "far"),)),
    case(CAPITAL, "Fendor", "capital"),
    case(RIVER, "Fendor", "river"),
    case(RIVER, "Galhum", "river"),
]


def probes(number: int, cases: list[ReportCase] = CASES, chat: bool = False) -> dict[str, list[Probe]]:
    tokenizer = words_tokenizer()
    tokenizer.chat_template = TEMPLATE if chat else None
    found: dict[str, list[Probe]] = {}
    for probe in ProbeMaker(cases, tokenizer).probes(number):
        found.setdefault(probe.row, []).append(probe)
    return found


def prompts(found: dict[str, list[Probe]], row: str) -> list[str]:
    return [probe.prompt for probe in found.get(row, [])]


def test_what_must_hold_is_asked_in_many_wordings() -> None:
    found = probes(0)
    assert prompts(found, rows.EDIT) == ["What is the capital of Belia?"]
    assert prompts(found, rows.NO_QUESTION_MARK) == ["What is the capital of Belia"]
    assert prompts(found, rows.LOWER_CASE) == ["what is the capital of belia?"]
    assert prompts(found, rows.PARAPHRASE) == ["Belia's seat is"]
    (passage,) = prompts(found, rows.PASSAGE)
    assert passage.endswith("What is the capital of Belia?")
    assert all(probe.answer == "Osten" for row in (rows.EDIT, rows.TYPO) for probe in found[row])
    assert rows.CHAT_EDIT not in found


def test_what_must_stay_is_near_the_edit_and_far_from_it() -> None:
    found = probes(0)
    assert "What is the capital of Fendor?" in prompts(found, SAME_QUESTION)
    assert "What is the capital of Belia?" not in prompts(found, SAME_QUESTION)
    assert prompts(found, OTHER_RELATION) == ["Which river crosses Belia?"], "Fendor has both relations"
    assert prompts(found, rows.NEAR_SUBJECT)[0].endswith(" Belia?")
    assert all(text.startswith("Which river") for text in prompts(found, rows.UNRELATED_QUESTION))
    assert prompts(found, rows.LOCALITY) == ["the moon is"]
    assert prompts(found, rows.LOCALITY_QUESTION) == ["the moon is?"]
    assert len(found[rows.UNRELATED]) == 2


def test_the_datas_own_near_texts_come_first() -> None:
    own = case(CAPITAL, "Belia", near={SAME_QUESTION: (("And Dor?", "Velda"),), "aliases": (("Belland", ""),)})
    found = probes(0, [own, *CASES])
    assert [(probe.prompt, probe.answer) for probe in found[SAME_QUESTION]] == [("And Dor?", "Velda")]
    assert prompts(found, "near/aliases") == ["Belland"]


def test_chat_rows_are_in_the_models_template() -> None:
    found = probes(0, chat=True)
    assert prompts(found, rows.CHAT_EDIT) == ["[user] What is the capital of Belia?[answer]"]
    assert len(found[rows.CHAT_UNRELATED]) == 1
    assert len(found[rows.CHAT_NEAR]) == 1


def test_a_case_that_says_only_prompt_and_target_still_has_rows() -> None:
    found = probes(0, [ReportCase(EditRequest("Say it", "Osten"))])
    assert {rows.EDIT, rows.PASSAGE, rows.UNRELATED} <= found.keys()
    assert not {SAME_QUESTION, OTHER_RELATION, rows.NEAR_SUBJECT, rows.UNRELATED_QUESTION} & found.keys()


def test_the_same_cases_give_the_same_probes() -> None:
    assert probes(1) == probes(1)


def test_a_typo_is_never_in_the_subject() -> None:
    for seed in range(20):
        typo = with_typo("Whence Konstantin?", "Konstantin", random.Random(seed))
        assert typo is not None
        assert typo.endswith("Konstantin?")
        assert sorted(typo) == sorted("Whence Konstantin?")
    assert with_typo("Who is Al?", "Al", random.Random(0)) is None


def test_wordings_that_change_nothing_are_left_out() -> None:
    assert without_question_mark("It is") is None
    assert as_question("Is it?") is None
    assert in_lower_case("is it?") is None


def test_rows_are_in_order() -> None:
    assert rows.in_order({"portability/x", rows.LOCALITY, rows.EDIT}) == [rows.EDIT, rows.LOCALITY, "portability/x"]
