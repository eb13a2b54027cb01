"""Tests of `editors.scoring.report.answers`: an answer is read as far as the one that it is compared with."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from editors.scoring.report.answers import Answerer
from tests.editors.scoring.report.worlds import number_lm
from tests.tiny_models import random_edit

PROMPTS = ["33 34 35", "44", "55 56 57 58 59 63", "64 65"]


def test_an_answer_ends_where_it_does_by_itself_beside_any_wanted_text_without_an_end() -> None:
    lm = number_lm()
    edit = random_edit(lm.site_widths())
    plain, beside = Answerer(lm), Answerer(lm)
    wanted = ["1 2", "Yahoo! Inc", "", "Yahoo! Inc"]
    assert beside.before(PROMPTS, wanted) == plain.before(PROMPTS)
    (found,), (expected,) = beside.after(PROMPTS, [edit], [0] * 4, wanted), plain.after(PROMPTS, [edit], [0] * 4)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.agreement) == (other.text, other.agreement)
        assert one.kl == pytest.approx(other.kl, abs=1e-5)


def test_an_answer_goes_on_where_the_wanted_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of this tokenizer ends a sentence."""

    def decoded(_: object, ids: list[int], **__: object) -> str:
        return " ".join(f"w{number}!" for number in ids)

    def all_decoded(_: object, rows: list[list[int]], **__: object) -> list[str]:
        return [decoded(None, row) for row in rows]

    lm = number_lm()
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", decoded)
    monkeypatch.setattr(PreTrainedTokenizerFast, "batch_decode", all_decoded)
    answerer, wanted = Answerer(lm), ["w1", "Yahoo! Inc", "", "Yahoo! Inc"]
    (after,) = answerer.after(PROMPTS, [random_edit(lm.site_widths())], [0] * 4, wanted)
    said = [answer.text for answer in answerer.before(PROMPTS, wanted)] + [answer.text for answer in after]
    assert [len(text) >= len("Yahoo! Inc") for text in said] == [text == "Yahoo! Inc" for text in wanted * 2]
