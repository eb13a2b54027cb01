"""Tests of `editors.texts.requests`."""

from __future__ import annotations

from typing import Any

import pytest

from editors.common.errors import EditorError
from editors.texts.requests import EditRequest

GIVEN: dict[str, Any] = {"prompt": "Who founded Dor?", "target": "Anna"}


@pytest.mark.parametrize("more", [{}, {"subject": "Dor"}, {"subject": "Dor", "relation": "founder"}, {"form": "chat"}])
def test_a_request_is_what_its_texts_say(more: dict[str, Any]) -> None:
    request = EditRequest(**GIVEN, **more)
    assert request.texts() == {**GIVEN, **more}
    texts: dict[str, Any] = request.texts()
    assert EditRequest(**texts) == request


def test_the_bare_form_is_not_said() -> None:
    """Saved edits and manifests are as they were before there were forms."""
    assert EditRequest(**GIVEN, form="bare").texts() == GIVEN
    assert EditRequest(**GIVEN, form="bare") == EditRequest(**GIVEN) != EditRequest(**GIVEN, form="chat")


@pytest.mark.parametrize("form", ["", "Chat", None, ["chat"], 1])
def test_an_unknown_form_is_refused(form: Any) -> None:
    with pytest.raises(EditorError, match=r"EditRequest\.form must be one of bare, chat, got "):
        EditRequest(**GIVEN, form=form)


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("{} has its capital in", "Beldor", "Beldor has its capital in"),
        ("{}, or {}?", "Beldor", "Beldor, or Beldor?"),
        ("What does {} mean in Beldor?", "Beldor", "What does {} mean in Beldor?"),
        ("What does {} mean?", None, "What does {} mean?"),
    ],
)
def test_a_place_for_the_subject_is_filled(prompt: str, subject: str | None, expected: str) -> None:
    request = EditRequest(prompt, "Osten", subject)
    assert request.prompt == expected
    texts: dict[str, Any] = request.texts()
    assert EditRequest(**texts) == request


def test_a_text_that_is_too_long_is_refused_in_a_line() -> None:
    with pytest.raises(
        EditorError, match=r"EditRequest\.prompt 'a+' has 100,001 characters; at most 100,000"
    ) as caught:
        EditRequest("a" * 100_001, "Osten")
    assert len(str(caught.value)) < 200
