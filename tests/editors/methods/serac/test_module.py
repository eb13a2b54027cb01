"""SERAC's objectives against their equations written out text by text; what is trained and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from editors.artifacts.editor import load_editor
from editors.common.errors import EditorError
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig
from editors.methods.serac.scope import EmbeddingScope, best_threshold
from editors.methods.serac.texts import context_text
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch
from editors.texts.requests import EditRequest
from editors.training.module import FROZEN_PREFIX
from tests.editors.methods.serac.worlds import data_module, first_batch, new_editor
from tests.tiny_world import COUNTS, TinyWorld, as_from_a_shell, row

Objective = Literal["supervised", "mixture"]


def texts(editor: SERAC, tokens: TokenBatch) -> list[tuple[str, list[int]]]:
    """Each text's prompt and the ids of its answer."""
    return list(zip([text.prompt for text in tokens.texts], tokens.answer_ids(), strict=True))


def requests(editor: SERAC, batch: EditBatch) -> list[EditRequest]:
    return [EditRequest(*text) for text in batch.edit.texts]


def logits(editor: SERAC, prompt: str, answer: list[int], request: EditRequest | None = None) -> Tensor:
    """`[answer, V]` logits of one text alone: of the base model, or after the context and with the adapter."""
    model, tokenizer = editor.lm.model, editor.tokenizer
    ids = tokenizer(prompt)["input_ids"] + answer
    if request is None:
        return model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1]
    ids = tokenizer(context_text(request))["input_ids"] + ids[1:]  # one beginning of text
    with editor.network.adapter.edit().select(1).applied(model):
        return model(torch.tensor([ids])).logits[0, -len(answer) - 1 : -1]


def nll(values: Tensor, answer: list[int]) -> Tensor:
    return torch.nn.functional.cross_entropy(values, torch.tensor(answer))


def log_score(editor: SERAC, query: str, prompt: str) -> Tensor:
    scope = editor.network.scope
    assert isinstance(scope, EmbeddingScope)
    first, second = scope.embed([query])[0], scope.embed([prompt])[0]
    return -scope.log_scale.exp() * (1 - first @ second)


@torch.no_grad()
def test_supervised_losses(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world, hard_negatives=1, training={"c_edit": 0.3, "c_loc": 0.7})
    batch = first_batch(tiny_world, editor)
    losses = editor.episode_losses(batch)
    edits, rephrases = requests(editor, batch), texts(editor, batch.rephrase)
    edit_loss = [nll(logits(editor, p, a, edit), a) for (p, a), edit in zip(rephrases, edits, strict=True)]
    inside: list[Tensor] = []
    outside: list[Tensor] = []
    queries = [prompt for prompt, _ in [*rephrases, *texts(editor, batch.locality)]]
    for place, query in enumerate(queries):
        scores = [log_score(editor, query, edit.prompt) for edit in edits]
        own = scores.pop(place % len(edits))
        (inside if place < len(edits) else outside).append(own)
        outside.append(max(scores))
    scope = -torch.stack(inside).mean() - (1 - torch.stack(outside).exp()).log().mean()
    torch.testing.assert_close(losses.edit, torch.stack(edit_loss).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.locality, scope, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.total, 0.3 * losses.edit + 0.7 * losses.locality)


@torch.no_grad()
def test_mixture_losses(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world, objective="mixture", training={"c_edit": 0.3, "c_loc": 0.7})
    batch = first_batch(tiny_world, editor)
    losses = editor.episode_losses(batch)
    edits = requests(editor, batch)

    def mixed(prompt: str, answer: list[int], edit: EditRequest) -> tuple[Tensor, Tensor]:
        base = logits(editor, prompt, answer)
        score = log_score(editor, prompt, edit.prompt).expand(len(answer))
        return base.log_softmax(-1), mix(base, logits(editor, prompt, answer, edit), score)

    rephrases = zip(texts(editor, batch.rephrase), edits, strict=True)
    edit_loss = [nll(mixed(p, a, edit)[1], a) for (p, a), edit in rephrases]
    kept = [mixed(p, a, edit) for (p, a), edit in zip(texts(editor, batch.locality), edits, strict=True)]
    divergence = [(base.exp() * (base - new)).sum(-1).mean() for base, new in kept]
    torch.testing.assert_close(losses.edit, torch.stack(edit_loss).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.locality, torch.stack(divergence).mean(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses.shift, max((new - base).abs().max() for base, new in kept), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", ["supervised", "mixture"])
def test_everything_is_trained_but_the_base_model(tiny_world: TinyWorld, objective: Objective) -> None:
    editor = new_editor(tiny_world, objective=objective)
    editor.episode_losses(first_batch(tiny_world, editor)).total.backward()
    for name, parameter in editor.named_parameters():
        assert (parameter.grad is None) == name.startswith(FROZEN_PREFIX), name
    grouped = [parameter for group in editor.parameter_groups() for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in editor.network.parameters()}


@pytest.mark.parametrize("objective", ["supervised", "mixture"])
def test_cross_attention_is_trained_but_for_its_index(tiny_world: TinyWorld, objective: Objective) -> None:
    editor = new_editor(tiny_world, {"scope": "cross_attention"}, objective=objective)
    losses = editor.episode_losses(first_batch(tiny_world, editor))
    losses.total.backward()
    assert losses.locality > 0
    for name, parameter in editor.network.named_parameters():
        assert (parameter.grad is None) == name.startswith("scope.encoder."), name
    assert all(parameter.requires_grad for group in editor.parameter_groups() for parameter in group["params"])


@pytest.mark.parametrize("objective", ["supervised", "mixture"])
def test_the_losses_fall(tiny_world: TinyWorld, objective: Objective) -> None:
    editor = new_editor(tiny_world, objective=objective)
    batch = first_batch(tiny_world, editor)
    optimizer = torch.optim.Adam(editor.network.parameters(), lr=3e-3)
    course = []
    for _ in range(15):
        losses = editor.episode_losses(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        course.append(losses.detach())
    assert course[-1].edit < 0.9 * course[0].edit
    assert course[-1].locality < 0.9 * course[0].locality


def test_an_edit_is_made_of_the_requests(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world)
    batch = first_batch(tiny_world, editor)
    edit = editor.network.make(editor.lm, batch.requests)
    assert [memory.requests for memory in edit.memories] == [(request,) for request in batch.requests.requests]
    assert all(request.subject for request in batch.requests.requests)


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_validation_in_training_sets_the_threshold_and_the_artifact_keeps_it(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    short = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")
    cli = tiny_world.run("fit", tmp_path / "runs", *short, editor="serac")
    editor, metrics = cli.model, cli.trainer.callback_metrics
    held_out = [row(number) for number in range(COUNTS["train"], COUNTS["train"] + COUNTS["val"])]
    inside, easy = (
        torch.cat([log_score(editor, values[name], values["src"]).detach().exp() for values in held_out])
        for name in ("rephrase", "loc")
    )
    for kind, wanted in {"paraphrase": inside, "locality": easy}.items():
        torch.testing.assert_close(editor.scope_scores[kind].sort().values, wanted.sort().values, rtol=1e-4, atol=1e-5)
    outside = torch.cat([editor.scope_scores["locality"], editor.scope_scores["other_edits"]])
    threshold = best_threshold(editor.scope_scores["paraphrase"], outside)
    assert threshold != 0.5
    assert editor.network.threshold.item() == pytest.approx(threshold)
    assert metrics["val/scope/threshold"].item() == pytest.approx(threshold)
    assert metrics["val/scope/paraphrase_accuracy"].item() == pytest.approx((inside > threshold).float().mean().item())
    assert metrics["val/scope/locality_accuracy"].item() == pytest.approx((easy <= threshold).float().mean().item())
    (artifact,) = tmp_path.rglob("artifact")
    kept = load_editor(artifact).network.state_dict()["threshold"]
    assert torch.equal(kept, editor.network.threshold)


def test_validation_outside_of_training_keeps_the_threshold(tiny_world: TinyWorld, tmp_path: Path) -> None:
    editor = new_editor(tiny_world)
    editor.network.threshold.fill_(0.125)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    with as_from_a_shell():
        trainer.validate(editor, datamodule=data_module(tiny_world, editor), verbose=False)
    assert editor.network.threshold.item() == 0.125
    assert trainer.callback_metrics["val/scope/threshold"].item() == 0.125


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"rank": 0}, r"serac\.rank must be at least 1, got 0"), ({"scale": 0.0}, r"serac\.scale must be above 0")],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(EditorError, match=message):
        SERACConfig(**wrong)  # type: ignore[arg-type]


def test_a_negative_number_of_hard_negatives_is_refused(tiny_world: TinyWorld) -> None:
    with pytest.raises(EditorError, match="hard_negatives must be at least 0, got -1"):
        new_editor(tiny_world, hard_negatives=-1)
