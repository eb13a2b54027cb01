"""Tests of `editors.conflicts`."""

from __future__ import annotations

from editors.conflicts import find_conflicts
from editors.requests import EditRequest


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
