"""What a batch says, and how an edit is written before a query."""

from __future__ import annotations

from dataclasses import replace

import pytest

from editors.methods.serac.texts import BaseTexts, context_text
from editors.texts.batches import PaddingSide, Text
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.words_world import EDITS, PROMPTS, SIDES, TARGETS, WORDS, answers
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID

TEXTS = BaseTexts(WORDS)


@pytest.mark.parametrize("side", SIDES)
def test_a_batch_says_its_prompts_and_answers(side: PaddingSide) -> None:
    tokens, _ = answers(side)
    prompts, targets = [[WORDS.text(ids) for ids in part] for part in (PROMPTS, TARGETS)]
    assert TEXTS.prompts(tokens) == prompts
    assert TEXTS.answers(tokens) == targets
    pairs = tuple(Text(f" {prompt}?", f"{target} ") for prompt, target in zip(prompts, targets, strict=True))
    words = replace(tokens, texts=pairs)
    assert TEXTS.prompts(words) == [f"{prompt}?" for prompt in prompts]
    assert TEXTS.answers(words) == targets


def test_special_tokens_are_no_text() -> None:
    assert TEXTS.special_ids == {PAD_ID, BOS_ID, EOS_ID}
    assert TEXTS.decode([[PAD_ID, BOS_ID, *PROMPTS[0], EOS_ID], [BOS_ID]]) == [WORDS.text(PROMPTS[0]), ""]


def test_context_holds_prompt_and_target_on_a_line() -> None:
    assert context_text(EditRequest("Who founded Beldor?", "Anna Weld")) == "Who founded Beldor? Anna Weld\n"


def test_contexts_stand_in_the_place_of_their_requests() -> None:
    first, third = ([BOS_ID, *PROMPTS[i], *TARGETS[i]] for i in (0, 2))
    assert TEXTS.contexts([None, EDITS[0], None, EDITS[1]]) == [None, first, None, third]
    assert TEXTS.contexts([None]) == [None]
