"""Tests of `editors.scoring.report.making`: what a card says of methods whose behaviour is known."""

from __future__ import annotations

import json

import pytest

from editors.common.errors import ArtifactError, EditorError
from editors.scoring.report import rows
from editors.scoring.report.card import ReportCard
from editors.scoring.report.cases import SAME_QUESTION, ReportCase
from editors.scoring.report.making import make_report, report_of_edit
from editors.scoring.report.measures import (
    ANSWER_KEPT,
    EXACT_MATCH,
    KL,
    NEWLY_SAYS_TARGET,
    SAYS_TARGET,
    TOKEN_AGREEMENT,
)
from editors.scoring.report.placebo import RANDOM_UPDATE, SHUFFLED_TARGET
from tests.editors.scoring.report.worlds import AnswersEverything, ChangesNothing, number_cases, number_lm

TEXTS = {"long": ["33 34 35 36 37 38 39 43 44 45 46 47"], "short": ["48 49", "53 54"], "none": [" "]}


@pytest.fixture(scope="module")
def shouting() -> ReportCard:
    """Of a method that answers its target to everything."""
    return make_report(number_lm(), AnswersEverything(), number_cases(4), together=(1, 2, 9), batch_size=3)


@pytest.fixture(scope="module")
def idle() -> ReportCard:
    """Of a method that changes nothing."""
    return make_report(number_lm(), ChangesNothing(), number_cases(4), texts=TEXTS, together=(2,), batch_size=3)


def test_a_method_that_answers_its_target_to_everything_is_shown_as_such(shouting: ReportCard) -> None:
    edit, near = shouting.row(rows.EDIT), shouting.row(SAME_QUESTION)
    assert edit.after[EXACT_MATCH].mean == 1
    assert edit.before[EXACT_MATCH] == 0
    assert near.n == 8
    # The random model says a target now and then by itself, and that does not count.
    assert near.after[NEWLY_SAYS_TARGET].mean + near.before[SAYS_TARGET] == 1
    assert near.after[NEWLY_SAYS_TARGET].mean > 0.5
    assert near.after[ANSWER_KEPT].mean == 0
    assert near.after[KL].mean > 1
    assert not any(example.good for example in near.examples)
    assert all(example.edit.endswith(f"→ {example.after}") for row in shouting.rows for example in row.examples)


def test_its_placebo_with_another_target_never_says_the_own_one(shouting: ReportCard) -> None:
    floor = shouting.row(rows.EDIT).placebos
    assert floor[RANDOM_UPDATE] is None, "no weight update"
    shuffled = floor[SHUFFLED_TARGET]
    assert shuffled is not None
    assert shuffled.values[EXACT_MATCH] == 0


def test_edits_together_are_made_as_one(shouting: ReportCard) -> None:
    """Of two edits the later one's target is what this method says: half of the prompts get theirs."""
    one, two = shouting.together
    assert (one.edits, one.groups, two.edits, two.groups) == (1, 4, 2, 2)
    assert one.rows[rows.EDIT].values[EXACT_MATCH] == 1
    assert two.rows[rows.EDIT].values[EXACT_MATCH] == 0.5


def test_a_method_that_changes_nothing_keeps_everything_and_edits_nothing(idle: ReportCard) -> None:
    for row in idle.rows:
        if row.expects == "keep":
            assert (row.after[ANSWER_KEPT].mean, row.after[TOKEN_AGREEMENT].mean) == (1, 1)
            assert row.after[KL].mean == pytest.approx(0, abs=1e-6)
            assert row.after[NEWLY_SAYS_TARGET].mean == 0
        else:
            assert row.after[EXACT_MATCH].mean == row.before[EXACT_MATCH] == 0
    assert {name: each.tokens for name, each in idle.damage.items()} == {"long": 11, "short": 2}
    for each in idle.damage.values():
        assert each.perplexity == pytest.approx(each.perplexity_before)
        assert each.edits == 3
    (together,) = idle.together
    assert together.damage["short"].kl == pytest.approx(0, abs=1e-6)


def test_a_card_comes_back_from_json(idle: ReportCard) -> None:
    assert ReportCard.from_json(json.loads(json.dumps(idle.to_json()))) == idle


@pytest.mark.parametrize("values", [{}, {"schema": "other"}, {"schema": "hyperedit-report-1", "rows": 3}])
def test_what_is_no_card_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ArtifactError):
        ReportCard.from_json(values)


def test_the_same_seed_gives_the_same_card(idle: ReportCard) -> None:
    again = make_report(number_lm(), ChangesNothing(), number_cases(4), texts=TEXTS, together=(2,), batch_size=1)
    assert [row.examples for row in again.rows] == [row.examples for row in idle.rows]
    assert [row.after[row.headline] for row in again.rows] == [row.after[row.headline] for row in idle.rows]
    assert again.data == idle.data


def test_one_edit_is_in_force_for_all_its_cases() -> None:
    lm, cases = number_lm(), number_cases(2)
    edit = ChangesNothing().make(lm, lm.read([[case.request for case in cases]]))
    card = report_of_edit(lm, edit, cases)
    assert card.cases == 2
    assert card.row(rows.EDIT).placebos[SHUFFLED_TARGET] is None
    several = ChangesNothing().make(lm, lm.read([[case.request] for case in cases]))
    with pytest.raises(EditorError, match="holds 2 episodes"):
        report_of_edit(lm, several, cases)


def test_facts_of_the_same_edit_need_not_stay() -> None:
    """Case 0's question about the subject of case 1 is case 1's prompt: where both are in force, it must change."""
    lm, cases = number_lm(), number_cases(2)
    edit = AnswersEverything().make(lm, lm.read([[case.request for case in cases]]))
    prompts = {case.request.prompt for case in cases}
    alone = make_report(lm, AnswersEverything(), cases, together=())
    asked = {example.prompt for row in alone.rows if row.expects == "keep" for example in row.examples}
    assert asked & prompts
    card = report_of_edit(lm, edit, cases)
    assert not any(example.prompt in prompts for row in card.rows if row.expects == "keep" for example in row.examples)


def test_texts_without_room_are_counted_and_no_case_is_refused() -> None:
    lm = number_lm()
    long = ReportCase(number_cases(1)[0].request, (" ".join(["33"] * 490),))
    card = make_report(lm, ChangesNothing(), [long, *number_cases(2)], together=())
    assert card.row(rows.PARAPHRASE).left_out == 1
    with pytest.raises(EditorError, match="at least one edit"):
        make_report(lm, ChangesNothing(), [])
