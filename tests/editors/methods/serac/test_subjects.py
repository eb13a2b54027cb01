"""What a query says of an edit's subject."""

from __future__ import annotations

import pytest

from editors.methods.serac.subjects import final_question, mentioned, without_subject
from editors.texts.requests import EditRequest

FRANCE = EditRequest("The capital of France is", "Lyon", subject="France")
EVEREST = EditRequest("The height of Mount Everest is", "9 m", subject="Everest")


@pytest.mark.parametrize(
    ("text", "request_", "share"),
    [
        ("France has which capital?", FRANCE, 1.0),
        ("Is France's capital large?", FRANCE, 1.0),
        ("Which city is the capital of the Republic, France?", FRANCE, 1.0),
        ("It is The France of old", FRANCE, 1.0),
        ("what is the capital of new france", FRANCE, 1.0),  # small letters do not tell
        ("New France is next to France", FRANCE, 1.0),
        ("It rained. Which city leads New France?", FRANCE, 0.0),
        ("Who sang with France Gall?", FRANCE, 0.0),
        ("How high is Mount Everest?", EVEREST, 1.0),
        ("How high is Everest?", EVEREST, 1.0),
        ("How high is Little Everest?", EVEREST, 0.0),
        ("- Who's France's king?", FRANCE, 1.0),
        ("Qui est né à France ?", FRANCE, 1.0),
        ("What Is The Capital City Of France Today?", FRANCE, 1.0),
        ("Who is President France?", FRANCE, 1.0),
        ("日本の首都は", EditRequest("日本の首都は", "大阪", subject="日本"), 1.0),
        ("Who lives there?", EditRequest("Who lives there?", "Ann"), 1.0),
    ],
)
def test_a_subject_is_named_but_not_as_part_of_a_longer_name(text: str, request_: EditRequest, share: float) -> None:
    assert mentioned(text, request_) == share


def test_a_typing_error_costs_little() -> None:
    assert 0.3 < mentioned("The capital of Frnace is", FRANCE) < 1
    assert mentioned("The capital of Chad is", FRANCE) < 0.2


@pytest.mark.parametrize(
    "text",
    [
        "Who is Dr. Who's friend?",
        "Apple Inc. was founded by",
        "Mr. Smith of St. Louis lives in",
        "So? Why?",
        "",
        "One.",
    ],
)
def test_short_forms_end_no_sentence(text: str) -> None:
    assert final_question(text) == text


def test_the_last_sentence_is_asked() -> None:
    assert final_question("She opened the window. Who rules France?") == "Who rules France?"
    assert final_question("First line\nWho rules France?") == "Who rules France?"
    assert final_question("Who rules France? I ask. Please?") == "I ask. Please?"


def test_the_subject_is_taken_out_as_a_word() -> None:
    assert without_subject("What is the status of the US?", "US") == "What is the status of the it?"
    assert without_subject("Who is FRANCE's king?", "France") == "Who is it's king?"
    assert without_subject("日本の首都は", "日本") == "itの首都は"


def test_a_text_without_the_subject_stays() -> None:
    assert without_subject("Who rules Chad?", "France") == without_subject("Who rules Chad?", None) == "Who rules Chad?"
