"""Tests of `editors.scoring.report.measures`."""

from __future__ import annotations

import pytest

from editors.scoring.report.answers import EditedAnswer
from editors.scoring.report.measures import is_loop, measured, says
from editors.scoring.report.probes import Probe


def values(expects: str, before: str, after: str, answer: str = "") -> dict[str, float]:
    probe = Probe("row", "prompt", expects, answer)  # type: ignore[arg-type]
    return dict(measured(0, probe, "Cairo", before, EditedAnswer(after, 0.5, 0.1)).values)


def test_target_rows_read_answers_as_squad_does() -> None:
    found = values("target", "Paris", "the  cairo.", "Cairo")
    assert (found["exact_match"], found["starts_with"], found["says_target"]) == (1, 1, 1)
    found = values("target", "Paris", "Cairo, in Egypt", "Cairo")
    assert (found["exact_match"], found["starts_with"], found["says_target"]) == (0, 1, 1)
    found = values("target", "Paris", "Cairoan", "Cairo")
    assert (found["exact_match"], found["starts_with"], found["says_target"]) == (0, 0, 0)


@pytest.mark.parametrize("wanted", ["1. Cairo", "Mrs. Dalloway", "Yahoo! Inc", "It is true. And more.", "one\ntwo"])
@pytest.mark.parametrize("expects", ["target", "answer"])
def test_the_wanted_text_is_read_whole(expects: str, wanted: str) -> None:
    assert values(expects, "", wanted, wanted)["exact_match"] == 1
    found = values(expects, "", wanted.rsplit(maxsplit=1)[0], wanted)
    assert (found["exact_match"], found["starts_with"]) == (0, 0)


@pytest.mark.parametrize(
    ("before", "after", "kept", "said"),
    [("Paris", "Paris", 1, 0), ("Paris", "Cairo", 0, 1), ("Cairo", "in Cairo", 0, 0), ("Cairo", "Cairo", 1, 0)],
)
def test_keep_rows_count_the_target_only_where_it_is_new(before: str, after: str, kept: int, said: int) -> None:
    found = values("keep", before, after)
    assert (found["answer_kept"], found["newly_says_target"], found["token_agreement"], found["kl"]) == (
        kept,
        said,
        0.5,
        0.1,
    )


def test_empty_answers_are_counted() -> None:
    assert values("keep", "Paris", "")["empty"] == 1


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("a b c d a b c d a b c d a b c d", True),
        ("a b c d a b c d a b c d", False),
        ("so very very very good", False),
        ("hahahaha", True),
        ("1000000000000", False),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert is_loop(text) == loop


def test_a_target_of_marks_alone_is_looked_for_as_it_is() -> None:
    assert says("It is 5 + 5", "+") == 1
    assert says("It is 10", "+") == 0
