"""Generation that goes on from a pass over prompts and answers writes the same tokens, and reads no prompt again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.lm.generation import Continuation
from editors.lm.kv_cache import KVCache
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import ARCHITECTURES, PAD_ID, random_edit, random_texts, tiny_lm, tiny_model

EXTRA = 4


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return tiny_lm(tiny_model(request.param), num_blocks=1)


def half_right(lm: FrozenLM, edit: Edit | None, side: PaddingSide) -> list[TokenBatch]:
    """Two batches; of some answers all tokens are those the model generates, of some the first ones, of some none."""
    batches = []
    for seed in range(2):
        texts = random_texts((7, 4, 9, 6), max_answer=4, seed=seed)
        longer = [
            EncodedText(t.ids[: t.answer_start] + 4 * t.ids[:1], t.answer_start, t.answer_start + 4) for t in texts
        ]
        said = lm.generate([collate_texts(longer, range(4), PAD_ID)], edit)[0]
        answers = [said[0], said[1][:2], [*said[2][:2], 5, 6], list(texts[3].answer)]
        made = [
            replace(t, ids=(*t.ids[: t.answer_start], *answer), answer_end=t.answer_start + len(answer))
            for t, answer in zip(texts, answers, strict=True)
            if answer
        ]
        batches.append(collate_texts(made, range(len(made)), PAD_ID, side))
    return batches


def continuations(lm: FrozenLM, batches: list[TokenBatch], edit: Edit | None) -> list[Continuation]:
    """What passes over prompts and answers leave."""
    below = [KVCache() for _ in batches]
    hidden = lm.prefix(batches, below)
    caches = [part.branch() for part in below]
    logits = [lm.logits(*each) for each in zip(batches, [edit] * len(batches), hidden, caches, strict=True)]
    return [Continuation(each.argmax(dim=-1), part) for each, part in zip(logits, caches, strict=True)]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("edited", [False, True])
def test_the_tokens_are_the_same(lm: FrozenLM, edited: bool, side: PaddingSide, ends: bool) -> None:
    lm.model.generation_config.eos_token_id = None
    edit = random_edit(lm.site_widths(), num_episodes=4, scale=1.0) if edited else None
    batches = half_right(lm, edit, side)
    expected = lm.generate(batches, edit, EXTRA)
    if ends:
        lm.model.generation_config.eos_token_id = expected[0][0][2]
        expected = lm.generate(batches, edit, EXTRA)
    assert lm.generate(batches, edit, EXTRA, continuations(lm, batches, edit)) == expected


def test_no_prompt_is_read_again(lm: FrozenLM) -> None:
    lm.model.generation_config.eos_token_id = None
    batches = half_right(lm, None, "right")
    starts = continuations(lm, batches, None)
    widths: list[int] = []

    def record(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        widths.append((args[0] if args else kwargs["input_ids"]).shape[1])

    lm.model.get_input_embeddings().register_forward_pre_hook(record, with_kwargs=True)
    lm.generate(batches, None, EXTRA, starts)
    assert set(widths) == {1}


def test_later_passes_leave_what_is_below_as_it_was() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=1)
    batch = half_right(lm, None, "right")[0]
    below = KVCache()
    hidden = lm.prefix([batch], [below])[0]
    before = below.first(0, 3)
    lm.logits(batch, None, hidden, below.branch())
    assert torch.equal(below.first(0, 3), before)
