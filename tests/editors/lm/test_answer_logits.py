"""Losses of logits that are made a few rows at a time."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from editors.edits.low_rank import LowRankEdit
from editors.lm import answer_logits
from editors.lm.answer_logits import AnswerLogits
from editors.lm.frozen import FrozenLM
from editors.lm.losses import answer_nll, locality_kl
from editors.methods.ke.module import KE
from editors.texts.batches import TokenBatch
from editors.training.objective import EditAndLocality
from tests.editors.lm.cache.test_cached_steps import batches, editor, step
from tests.tiny_models import ARCHITECTURES, random_batch, random_edit, tiny_lm, tiny_model
from tests.tiny_world import TinyWorld

LENGTHS = (9, 4, 12, 7)


@pytest.fixture(autouse=True)
def _two_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(answer_logits._ROWS_AT_ONCE, "cpu", 2)


def edited(model: PreTrainedModel) -> tuple[FrozenLM, LowRankEdit, TokenBatch]:
    """A model, and an edit that gradients flow to, with a text for each episode."""
    lm = tiny_lm(model, num_blocks=2)
    edit = random_edit(lm.site_widths(), num_episodes=len(LENGTHS))
    for update in edit.updates.values():
        update.u.requires_grad_()
    return lm, edit, random_batch(LENGTHS)


def answers_of(lm: FrozenLM, edit: LowRankEdit, tokens: TokenBatch) -> AnswerLogits:
    return lm.answer_logits([tokens], edit, lm.prefix([tokens]))[0]


def gradients(losses: Tensor, edit: LowRankEdit) -> list[Tensor]:
    """Of a sum in which every loss has another weight."""
    weighted = (losses * torch.arange(1.0, len(losses) + 1)).sum()
    return list(torch.autograd.grad(weighted, [update.u for update in edit.updates.values()]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_the_whole_logits(architecture: str) -> None:
    """Also where an architecture scales or caps logits behind its head."""
    lm, edit, tokens = edited(tiny_model(architecture))
    base, targets = lm.base_answer_logits(tokens).logits(), tokens.targets
    assert len(targets) > 2 * 2
    for found, wanted in (
        (
            answers_of(lm, edit, tokens).target_losses(answer_nll, targets),
            answer_nll(lm.logits(tokens, edit), targets),
        ),
        (
            answers_of(lm, edit, tokens).losses(lambda logits, rows: locality_kl(base[rows], logits)),
            locality_kl(base, lm.logits(tokens, edit)),
        ),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients(found, edit), gradients(wanted, edit), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_losses_and_gradients_are_those_of_the_whole_logits_to_its_precision(autocast: bool) -> None:
    lm, edit, tokens = edited(tiny_model("llama", dtype=torch.float32 if autocast else torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = answers_of(lm, edit, tokens).target_losses(answer_nll, tokens.targets)
        wanted = answer_nll(lm.logits(tokens, edit), tokens.targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    for one, other in zip(gradients(found, edit), gradients(wanted, edit), strict=True):
        assert (one - other).norm() < 0.03 * other.norm()


@pytest.mark.parametrize("kind", ["mend", "ke", "simple ke"])
def test_a_step_is_that_of_the_whole_logits(kind: str, tiny_world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss of a step, and the largest change of a logit, in parts and in one."""
    found = []
    for rows in (2, 1000):
        monkeypatch.setitem(answer_logits._ROWS_AT_ONCE, "cpu", rows)
        made = editor(kind.removeprefix("simple "), tiny_world, None)
        if kind == "simple ke":
            assert isinstance(made, KE)
            made.objective = EditAndLocality(made.settings.c_edit, made.settings.c_loc)
        found.append(step(made, next(batches(made))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_a_few_rows_are_there_at_once() -> None:
    lm, edit, tokens = edited(tiny_model("llama"))
    scored: list[int] = []
    lm.model.get_output_embeddings().register_forward_hook(lambda _, args, __: scored.append(args[0].shape[1]))
    answers = answers_of(lm, edit, tokens)
    scored.clear()
    losses = answers.target_losses(answer_nll, tokens.targets)
    assert len(scored) == -(-len(tokens.targets) // 2)
    assert max(scored) == 2
    scored.clear()
    losses.sum().backward()
    assert not scored, "the backward pass made the logits once more"


def test_without_gradients_losses_have_none_and_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, edit, tokens = edited(tiny_model("llama"))
    answers = answers_of(lm, edit, tokens)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", None)
        losses = answers.target_losses(answer_nll, tokens.targets)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, answer_nll(lm.logits(tokens, edit), tokens.targets), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_float16_gradients_are_those_of_the_loss_as_it_was_scaled(autocast: bool) -> None:
    """A small gradient times a large scale is there; taken before the loss is scaled, it would be zero in float16."""
    lm, edit, tokens = edited(tiny_model("llama", dtype=torch.float32 if autocast else torch.float16))
    with torch.autocast("cpu", torch.float16) if autocast else nullcontext():
        answers = answers_of(lm, edit, tokens)
        small = answers.losses(lambda logits, rows: 1e-9 * functional.cross_entropy(
            logits.float(), tokens.targets[rows], reduction="none"))  # fmt: skip
    assert all(gradient.abs().max() > 0 for gradient in gradients(2.0**20 * small, edit))


def test_no_row_has_no_loss() -> None:
    def never(logits: Tensor, rows: slice) -> Tensor:
        raise AssertionError((logits, rows))

    lm, edit, tokens = edited(tiny_model("llama"))
    nothing, all_ = answers_of(lm, edit, tokens).split([0, len(tokens.targets)])
    assert (len(nothing), len(all_)) == (0, len(tokens.targets))
    assert nothing.losses(never).shape == (0,)
