"""Tests of `editors.texts.conflicts`."""

from __future__ import annotations

from typing import Any

import pytest

from editors.common.errors import EditorError
from editors.texts.conflicts import find_conflicts
from editors.texts.requests import EditRequest


def found(*pairs: tuple[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    return [(c.prompt, c.targets) for c in find_conflicts([EditRequest(*pair) for pair in pairs])]


def test_same_question_with_another_answer() -> None:
    pairs = [("Who founded Dor?", "Anna"), ("Who founded Gal?", "Tom"), ("  who founded  DOR ", "Tom")]
    assert found(*pairs) == [("Who founded Dor?", ("Anna", "Tom"))]


def test_width_of_characters_does_not_matter() -> None:
    assert found(("Who founded Dor?", "Anna"), ("Who founded Dor\uff1f", "Tom")) == [
        ("Who founded Dor?", ("Anna", "Tom"))
    ]


def test_same_answer_and_other_questions_are_no_conflict() -> None:
    assert found(("Who founded Dor?", "Anna"), ("who founded Dor", " anna."), ("Who founded Dora?", "Tom")) == []


def test_each_answer_is_named_once_in_order() -> None:
    ((_, targets),) = found(("q", "c"), ("q", "a"), ("q", "C"), ("q", "b"))
    assert targets == ("c", "a", "b")


def test_same_fact_in_other_words() -> None:
    """Only if both requests say so; and a conflict that is in the words too is told once."""
    first = EditRequest("Who founded Dor?", "Anna", "Dor", "founder")
    second = EditRequest("By whom was Dor founded?", "Tom", "dor", "Founder")
    assert [conflict.targets for conflict in find_conflicts([first, second])] == [("Anna", "Tom")]
    for other in (
        EditRequest("By whom was Dor founded?", "Tom"),
        EditRequest("By whom was Dor founded?", "Tom", "Dor", "owner"),
        EditRequest("By whom was Dor founded?", "anna", "Dor", "founder"),
    ):
        assert find_conflicts([first, other]) == []
    same = EditRequest("Who founded Dor?", "Tom", "Dor", "founder")
    assert [conflict.targets for conflict in find_conflicts([first, same])] == [("Anna", "Tom")]


@pytest.mark.parametrize("given", [("", None), (None, " "), ("", "founder"), ("Dor", 3)])
def test_an_empty_subject_or_relation_is_refused(given: tuple[Any, Any]) -> None:
    with pytest.raises(EditorError, match=r"EditRequest\.(subject|relation) must be a non-empty text"):
        EditRequest("Who founded Dor?", "Anna", *given)


def test_a_subject_needs_no_relation() -> None:
    request = EditRequest("Who founded Dor?", "Anna", "Dor")
    assert request.texts() == {"prompt": "Who founded Dor?", "target": "Anna", "subject": "Dor"}
    assert find_conflicts([request, EditRequest("By whom was Dor founded?", "Tom", "Dor")]) == []
