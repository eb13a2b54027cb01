"""Contexts before texts, the adapter, and the mixture of two models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.methods.serac.counterfactual.adapter import LowRankAdapter
from editors.methods.serac.counterfactual.context import context_text, prepend, with_contexts
from editors.methods.serac.counterfactual.interface import mix
from editors.texts.batches import PaddingSide, collate_texts
from editors.texts.requests import EditRequest
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


def test_prompts_and_answers_of_a_batch() -> None:
    for side in ("left", "right"):
        texts = random_texts([7, 4, 9])
        tokens = collate_texts(texts, [0, 1, 2], PAD_ID, side)
        assert tokens.prompt_ids() == [list(text.ids[: text.answer_start]) for text in texts]
        assert tokens.answer_ids() == [list(text.answer) for text in texts]


def test_the_adapter_is_off_in_episode_0_and_at_the_start() -> None:
    adapter = LowRankAdapter({"a.b": (5, 7), "a.c": (7, 5)}, rank=2)
    assert not adapter.edit().updates["a.b"].weight_delta(1).any()
    with torch.no_grad():
        adapter.up["a#b"].normal_()
    update = adapter.edit().updates["a.b"]
    assert not update.weight_delta(0).any()
    torch.testing.assert_close(update.weight_delta(1), adapter.down["a#b"].mT @ adapter.up["a#b"])
    assert torch.linalg.matrix_rank(update.weight_delta(1)) == 2
    update.weight_delta(1).sum().backward()
    assert adapter.down["a#b"].grad is not None


def test_context_holds_prompt_and_target_on_a_line() -> None:
    assert context_text(EditRequest("Who founded Beldor?", "Anna Weld")) == "Who founded Beldor? Anna Weld\n"


def test_mixture_of_probabilities() -> None:
    base, other = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    score = torch.tensor([0.2, 0.5, 0.97])
    wanted = (1 - score).unsqueeze(1) * base.softmax(-1) + score.unsqueeze(1) * other.softmax(-1)
    torch.testing.assert_close(mix(base, other, score.log()).exp(), wanted)
    torch.testing.assert_close(mix(base, base + 3.0, score.log()), base.log_softmax(-1))


@pytest.mark.parametrize(("log_score", "which"), [(0.0, 1), (-torch.inf, 0)])
def test_mixture_at_the_ends_is_one_model(log_score: float, which: int) -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    mixed = mix(logits[0], logits[1], torch.full((3,), log_score))
    torch.testing.assert_close(mixed.exp(), logits[which].softmax(-1), rtol=1e-4, atol=1e-6)


def test_mixture_has_finite_gradients_at_score_1() -> None:
    logits = torch.randn(2, 3, 9, requires_grad=True)
    log_score = torch.zeros(3, requires_grad=True)
    mix(logits[0], logits[1], log_score).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert log_score.grad is not None
    assert log_score.grad.isfinite().all()
