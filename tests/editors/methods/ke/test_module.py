"""Tests of KE's Lightning module: its objective, its parameter groups, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from torch import Tensor

from datamodules import EditDataModule, ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.edits.composing import low_rank
from editors.lm.losses import answer_nll, episode_means
from editors.methods.ke.constraint import Constraint, Margin, update_norm
from editors.methods.ke.module import KE
from editors.methods.ke.network import KEConfig
from editors.texts.episodes import EditBatch
from editors.training.config import TrainingConfig
from tests.tiny_world import TinyWorld, as_from_a_shell

MARGINS: dict[str, Any] = {"kl_margin": Margin(0.1, 0.01), "norm_margin": Margin(0.01, 0.001)}


def base_model(world: TinyWorld) -> BaseModelConfig:
    return BaseModelConfig(str(world.model), dtype="float32", num_blocks=2)


def new_editor(world: TinyWorld, edit_rate: float = 0.02, **arguments: Any) -> KE:
    config = KEConfig(hidden_width=16, condition_width=24, edit_rate=edit_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        editor = KE(base_model(world), config, **{**MARGINS, **arguments})
        editor.configure_model()
    return editor


def data_module(world: TinyWorld) -> EditDataModule:
    base = base_model(world)
    return EditDataModule(
        base, [ZsRE("train.json")], [ZsRE("val.json")], [], path=str(world.data), episodes_per_batch=8
    )


@pytest.fixture(scope="module")
def batch(tiny_world: TinyWorld) -> EditBatch:
    data = data_module(tiny_world)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_embedding_is_a_copy_of_the_base_models(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world)
    own, theirs = editor.network.condition.embedding.weight, editor.lm.model.get_input_embeddings().weight
    assert torch.equal(own, theirs)
    assert own.data_ptr() != theirs.data_ptr()
    assert own.requires_grad


def test_separators_are_those_of_the_condition(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world)
    assert [editor.tokenizer.decode(ids) for ids in editor.network.config.separators] == [" >>", " ||"]


def smoothed(logits: Tensor, targets: Tensor, share: float) -> Tensor:
    """Negative log-likelihood of a target that gets `1 - share`, the others the rest in equal parts."""
    logp = logits.log_softmax(-1)
    wanted = torch.full_like(logp, share / (logp.shape[-1] - 1))
    wanted[torch.arange(len(targets)), targets] = 1 - share
    return -(wanted * logp).sum(-1)


def test_constrained_objective_is_the_papers(tiny_world: TinyWorld, batch: EditBatch) -> None:
    editor = new_editor(tiny_world, smoothing=0.2).eval()
    losses = editor.episode_losses(batch)
    edit = editor.network.make(editor.lm, batch.requests)
    nll, episodes = [], []
    for tokens in (batch.edit, batch.rephrase):
        nll.append(smoothed(editor.lm.logits(tokens, edit), tokens.targets, 0.2))
        episodes.append(tokens.answer_episode())
    means, _ = episode_means(torch.cat(nll), torch.cat(episodes), batch.num_episodes)
    torch.testing.assert_close(losses.edit, means.mean(), rtol=1e-5, atol=1e-5)
    expected = means.mean() + 1.0 * (losses.locality - 0.1) + 1.0 * (update_norm(low_rank(edit)) - 0.01)
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-5)


def test_simple_objective_is_that_of_mend(tiny_world: TinyWorld, batch: EditBatch) -> None:
    editor = new_editor(tiny_world, objective="simple", training=TrainingConfig(c_edit=0.3, c_loc=0.7)).eval()
    losses = editor.episode_losses(batch)
    edit = editor.network.make(editor.lm, batch.requests)
    nll = answer_nll(editor.lm.logits(batch.rephrase, edit), batch.rephrase.targets)
    means, _ = episode_means(nll, batch.rephrase.answer_episode(), batch.num_episodes)
    torch.testing.assert_close(losses.edit, means.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.total, 0.3 * losses.edit + 0.7 * losses.locality)
    assert list(editor.constraints) == []


@pytest.mark.parametrize(("arguments", "groups"), [({}, 3), ({"objective": "simple"}, 2)])
def test_every_parameter_is_in_one_group(tiny_world: TinyWorld, arguments: dict[str, Any], groups: int) -> None:
    editor = new_editor(tiny_world, gate_learning_rate=0.5, multiplier_learning_rate=0.25, **arguments)
    found = editor.parameter_groups()
    assert [group.get("lr") for group in found] == [None, 0.5, 0.25][:groups]
    grouped = [id(p) for group in found for p in group["params"]]
    wanted = [*editor.network.parameters(), *editor.constraints.parameters()]
    assert sorted(grouped) == sorted(map(id, wanted))


def test_norm_is_unconstrained_unless_asked_for(tiny_world: TinyWorld) -> None:
    assert list(new_editor(tiny_world, norm_margin=None).constraints) == ["kl"]


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_must_be_a_share(tiny_world: TinyWorld, smoothing: float) -> None:
    with pytest.raises(EditorError, match=r"smoothing must be in \[0, 1\), got"):
        KE(base_model(tiny_world), smoothing=smoothing)


# --- training --------------------------------------------------------------------------------------------------------


def train(world: TinyWorld, folder: Path, editor: KE, steps: int) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=100,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    with as_from_a_shell():
        seed_everything(0)
        trainer.fit(editor, datamodule=data_module(world))
    return trainer


def test_multipliers_never_fall_below_zero(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Margins that nothing reaches: each step would lower the multipliers by about their learning rate."""
    wide = Margin(1000.0, 1.0)
    editor = new_editor(tiny_world, kl_margin=wide, norm_margin=wide, multiplier_learning_rate=0.6)
    train(tiny_world, tmp_path, editor, steps=3)
    for constraint in editor.constraints.values():
        assert isinstance(constraint, Constraint)
        assert constraint.multiplier.item() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "edit_rate", "metric", "part"),
    [("constrained", 0.02, "val/loss/edit", 0.95), ("simple", 0.05, "val/loss/total", 0.8)],
)
def test_default_editor_learns(
    tiny_world: TinyWorld, tmp_path: Path, objective: str, edit_rate: float, metric: str, part: float
) -> None:
    """Compared with an editor of one step, which has seen the statistics of a batch and is otherwise as it started."""
    found = []
    for steps in (1, 20):
        editor = new_editor(
            tiny_world, edit_rate, objective=objective, norm_margin=None, training=TrainingConfig(learning_rate=1e-3)
        )
        train(tiny_world, tmp_path, editor, steps)
        found.append(scores(tiny_world, editor, tmp_path))
    assert found[1][metric] < part * found[0][metric]
    success = "reliability/teacher_forced/token_accuracy"
    assert found[1][f"val/{success}"] > found[1][f"val/before/{success}"] + 0.3


def scores(world: TinyWorld, editor: KE, folder: Path) -> dict[str, float]:
    """Validation of the editor as it is."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder)
    with as_from_a_shell():
        trainer.validate(editor, datamodule=data_module(world), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
