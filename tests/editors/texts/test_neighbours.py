"""Tests of `editors.texts.neighbours`: texts near an edit."""

from __future__ import annotations

import pytest

from editors.texts.neighbours import alike, filled, other_questions, same_question, template_of
from editors.texts.requests import EditRequest

REQUEST = EditRequest("Is Paris, France, in France?", "no", subject="France")


def test_a_template_has_a_place_for_every_mention() -> None:
    template = template_of(REQUEST.prompt, REQUEST.subject)
    assert template == "Is Paris, {}, in {}?"
    assert filled(template, "Chad") == "Is Paris, Chad, in Chad?"


@pytest.mark.parametrize("subject", [None, "", "Chad"])
def test_there_is_no_template_without_the_subject(subject: str | None) -> None:
    assert template_of(REQUEST.prompt, subject) is None


def test_the_same_question_is_asked_about_others_only() -> None:
    others = ["Chad", "New France", "france", "Fra"]
    assert same_question(REQUEST, others) == ["Is Paris, Chad, in Chad?"]
    assert same_question(EditRequest(REQUEST.prompt, "no"), others) == []


def test_other_questions_are_about_the_same_subject() -> None:
    templates = ["Is Paris, {}, in {}?", "Who rules {}?"]
    assert other_questions(REQUEST, templates) == ["Who rules France?"]
    assert other_questions(EditRequest("Who?", "Ann"), templates) == []


def test_names_that_hold_one_another_are_alike() -> None:
    assert alike("New France", "france")
    assert not alike("Chad", "France")
