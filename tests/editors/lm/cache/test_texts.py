"""Tests of what tells texts and their answers apart."""

from __future__ import annotations

from dataclasses import replace

import torch

from editors.lm.cache.texts import AnsweredTexts
from editors.texts.batches import EncodedText, TokenBatch, collate_texts
from tests.tiny_models import PAD_ID, random_texts

TEXT = EncodedText((11, 12, 13, 14, 15), 2, 5)


def keys(*texts: EncodedText, side: str = "right") -> list[tuple[int, ...]]:
    return AnsweredTexts(collate_texts(texts, range(len(texts)), PAD_ID, side)).keys  # type: ignore[arg-type]


def test_padding_does_not_matter() -> None:
    longer = random_texts((9,))[0]
    assert keys(TEXT)[0] == keys(TEXT, longer)[0] == keys(longer, TEXT, side="left")[1]


def test_every_token_and_the_answers_bounds_matter() -> None:
    others = [
        replace(TEXT, ids=(10, *TEXT.ids[1:])),
        replace(TEXT, ids=(*TEXT.ids[:-1], 16)),  # only a label: the model does not read it
        replace(TEXT, answer_start=3),
        replace(TEXT, answer_end=4),
        EncodedText((11, 12, 13, 14, 15, 16), 2, 6),
    ]
    assert len({*keys(TEXT), *keys(*others)}) == 1 + len(others)


def test_values_of_answer_tokens_are_put_in_the_batchs_order() -> None:
    batch = collate_texts(random_texts((6, 8, 4)), range(3), PAD_ID)
    shuffled = torch.randperm(len(batch.rows), generator=torch.Generator().manual_seed(0))
    mixed = TokenBatch(
        batch.input_ids, batch.attention_mask, batch.positions[shuffled], batch.targets[shuffled], batch.rows[shuffled],
        batch.episode,
    )  # fmt: skip
    texts = AnsweredTexts(mixed)
    assert sorted(number for own in texts.answers for number in own) == list(range(len(mixed.rows)))
    parts = [mixed.targets[own] for own in texts.answers]
    assert torch.equal(texts.in_order(parts), mixed.targets)
