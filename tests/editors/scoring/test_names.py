"""The names of metrics, which users' result files and scripts rely on."""

from __future__ import annotations

import pytest

from editors.scoring import names
from editors.scoring.names import before_edit, is_after_edit, metric_name

EXACT = "reliability/generated/exact_match"


def test_a_name_says_promise_protocol_and_measure() -> None:
    assert metric_name(names.RELIABILITY, names.GENERATED, names.EXACT_MATCH) == EXACT
    assert names.TOKEN_LEVEL == {
        "reliability": "reliability/teacher_forced/token_accuracy",
        "generality": "generality/teacher_forced/token_accuracy",
        "locality": "locality/teacher_forced/token_agreement",
    }


@pytest.mark.parametrize(
    ("after", "before"),
    [(EXACT, f"before/{EXACT}"), (f"unseen_template/{EXACT}", f"unseen_template/before/{EXACT}")],
)
def test_a_slice_stands_before_all_else(after: str, before: str) -> None:
    assert before_edit(after) == before
    assert [is_after_edit(name) for name in (after, before)] == [True, False]


@pytest.mark.parametrize("name", ["loss/edit", "unseen_template/loss/edit", "train/edit_loss", "epoch"])
def test_losses_are_no_measures(name: str) -> None:
    assert not is_after_edit(name)
