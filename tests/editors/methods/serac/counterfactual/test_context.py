"""Contexts before texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.methods.serac.counterfactual.context import prepend, with_contexts
from editors.texts.batches import PaddingSide, collate_texts
from tests.tiny_models import PAD_ID, random_texts

BOS = 1
CONTEXT = [BOS, 90, 91, 92]


def rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The real tokens of each row; asserts that they stand side by side."""
    for real in mask:
        assert int((real[1:] != real[:-1]).sum()) <= 2
        assert not (real[0] and not real[-1] and int((real[1:] > real[:-1]).sum()))
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    ("ids", "mask", "columns"),
    [
        ([[5, 6, 7], [8, 9, 0]], [[1, 1, 1], [1, 1, 0]], 4),  # padded on the right
        ([[5, 6, 7], [0, 8, 9]], [[1, 1, 1], [0, 1, 1]], 4),  # on the left
        ([[0, 0, 5], [8, 9, 7]], [[0, 0, 1], [1, 1, 1]], 2),  # the context fills padding
        ([[0, 0, 0, 0, 5, 6], [8, 9, 7, 8, 9, 7]], [[0, 0, 0, 0, 1, 1], [1] * 6], 0),
        ([[BOS, 5, 6], [BOS, 8, 9]], [[1, 1, 1], [1, 1, 1]], 3),  # the context has a beginning of text
    ],
)
def test_a_context_stands_right_before_its_text(ids: list[list[int]], mask: list[list[int]], columns: int) -> None:
    old_ids, old_mask = torch.tensor(ids), torch.tensor(mask)
    new_ids, new_mask = prepend(old_ids, old_mask, [CONTEXT, None], {BOS, PAD_ID})
    assert new_ids.shape[1] == old_ids.shape[1] + columns
    first, second = rows(new_ids, new_mask)
    before = rows(old_ids, old_mask)
    assert first == CONTEXT + [i for i in before[0] if i != BOS]
    assert second == before[1]
    assert torch.equal(new_ids[0, columns:][old_mask[0].bool()][-2:], old_ids[0][old_mask[0].bool()][-2:])
    assert torch.equal(old_ids, torch.tensor(ids)), "the caller's ids were changed"


def test_without_contexts_nothing_changes() -> None:
    ids, mask = torch.tensor([[5, 6]]), torch.tensor([[1, 1]])
    new_ids, new_mask = prepend(ids, mask, [None], set())
    assert torch.equal(new_ids, ids)
    assert torch.equal(new_mask, mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_with_contexts_keeps_its_answers(side: PaddingSide) -> None:
    tokens = collate_texts(random_texts([7, 4, 9]), [0, 0, 1], PAD_ID, side)
    joined = with_contexts(tokens, [CONTEXT, None, CONTEXT], {PAD_ID, BOS})
    assert torch.equal(joined.targets, tokens.targets)
    assert joined.episode.tolist() == [1, 0, 1]
    assert torch.equal(joined.input_ids.flatten()[joined.positions], tokens.input_ids.flatten()[tokens.positions]), (
        "other tokens predict the answers"
    )
    assert [row[-len(old) :] for row, old in zip(joined.prompt_ids(), tokens.prompt_ids(), strict=True)] == (
        tokens.prompt_ids()
    )
    assert joined.prompt_ids()[0][: len(CONTEXT)] == CONTEXT
