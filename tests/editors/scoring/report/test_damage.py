"""Tests of `editors.scoring.report.damage`: which pieces of running texts are read."""

from __future__ import annotations

from typing import Any

import pytest

from editors.lm.frozen import FrozenLM
from editors.scoring.report.damage import PIECE_TOKENS, PIECES, Damage, damage
from tests.editors.scoring.report.worlds import ChangesNothing, number_cases, number_lm

# More than the pieces have room for, in one text and in many.
LONG = "33 " * (20 * PIECES * PIECE_TOKENS)
MANY = ["33 34 35"] * 1000


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return number_lm()


def measured(lm: FrozenLM, **texts: list[str]) -> dict[str, Damage]:
    edit = ChangesNothing().make(lm, lm.read([[case.request for case in number_cases(1)]]))
    return damage(lm, [edit], texts)


def test_every_file_is_measured_by_itself(lm: FrozenLM) -> None:
    first, second = [LONG], ["34 35 36"]
    both = measured(lm, first=first, second=second)
    assert list(both) == ["first", "second"]
    assert both["second"] == measured(lm, other=second)["other"]
    most = PIECES * (PIECE_TOKENS - 1)
    assert most - PIECE_TOKENS < both["first"].tokens <= most, "the last piece is what is left"
    assert both["second"].tokens == 2


@pytest.mark.parametrize(
    ("texts", "changed"),
    [
        ([LONG], [LONG[: -3 * PIECE_TOKENS] + "34 " * PIECE_TOKENS]),
        (MANY, [*MANY[:-1], "36 37 38"]),
        (MANY, ["36 37 38", *MANY[1:]]),
        (MANY, [*MANY[:500], *["36 37 38"] * 100, *MANY[600:]]),
    ],
)
def test_pieces_come_from_everywhere_in_a_file(lm: FrozenLM, texts: list[str], changed: list[str]) -> None:
    before, after = measured(lm, own=texts)["own"], measured(lm, own=changed)["own"]
    assert before.text_hash != after.text_hash
    assert before.perplexity_before != after.perplexity_before
    assert before.tokens > PIECES


def test_only_the_pieces_are_tokenised(lm: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Counting:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            read.extend(texts)
            return tokenizer(texts, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    edit = ChangesNothing().make(lm, lm.read([[case.request for case in number_cases(1)]]))
    tokenizer = lm.tokenizer
    monkeypatch.setattr(lm, "tokenizer", Counting())
    damage(lm, [edit], {"own": [LONG, *MANY]})
    assert len(read) == PIECES
    assert sum(map(len, read)) < 10 * PIECES * PIECE_TOKENS


@pytest.mark.parametrize("text", ["33" * 5000 + " 34", "33\n" * 5000, " 33 34", "33  " * 700])
def test_texts_of_any_shape_are_cut(lm: FrozenLM, text: str) -> None:
    assert measured(lm, own=[text])["own"].tokens > 0


def test_nothing_to_measure(lm: FrozenLM) -> None:
    assert measured(lm, empty=[], blank=[" \n"]) == {}
    assert damage(lm, [], {"own": MANY}) == {}
