"""Tests of `Watchdog`: each fault is made real in a short training, and must be told from the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer, seed_everything

from callbacks.watchdog import TrainingFault, Watchdog
from datamodules.base import EditDataModule
from datamodules.sources import ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.lm.losses import EpisodeLosses
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.training.config import TrainingConfig
from tests.callbacks.faults import LostLocality, PoisonedGradient, PoisonedParameter, StillTransforms
from tests.tiny_world import TinyWorld, as_from_a_shell

PATIENCE = 3


def train(
    world: TinyWorld, tmp_path: Path, *faults: Callback, watchdog: Watchdog | None = None, steps: int = 6, **model: Any
) -> Trainer:
    """Train a few steps with `faults` and then a watchdog."""
    base = BaseModelConfig(str(world.model), dtype="float32", num_blocks=2)
    settings = {"mend": MENDConfig(rank=4, edit_rate=0.05), "training": TrainingConfig(learning_rate=1e-3), **model}
    data = EditDataModule(base, [ZsRE("train.json")], [], [], path=str(world.data), episodes_per_batch=4)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=100,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
        log_every_n_steps=1,
        callbacks=[*faults, watchdog or Watchdog(PATIENCE)],
    )
    with as_from_a_shell():
        seed_everything(0)
        trainer.fit(MEND(base, **settings), datamodule=data)
    return trainer


def fault(error: pytest.ExceptionInfo[TrainingFault]) -> str:
    return str(error.value).split(",")[0]


def test_healthy_training_goes_on(tiny_world: TinyWorld, tmp_path: Path) -> None:
    assert train(tiny_world, tmp_path, watchdog=Watchdog(patience=1), steps=12).global_step == 12


def test_loss_that_is_not_a_number_stops(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match=r"Likely cause: the learning rate.*Remedy: lower") as error:
        train(tiny_world, tmp_path, PoisonedParameter(batch=1))
    assert fault(error) == "the loss is NaN or infinite"


def test_infinite_gradient_of_a_finite_loss_stops(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match=r"set trainer\.gradient_clip_val") as error:
        train(tiny_world, tmp_path, PoisonedGradient())
    assert fault(error) == "a gradient of the hypernetwork is NaN or infinite"


def test_zero_gradient_stops(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match=r"check base_model\.sites") as error:
        train(tiny_world, tmp_path, training=TrainingConfig(c_edit=0.0, c_loc=0.0))
    assert fault(error) == "every gradient of a parameter group is zero"


@pytest.mark.parametrize("missing", [False, True])
def test_zero_gradient_of_one_parameter_group_stops(tiny_world: TinyWorld, tmp_path: Path, missing: bool) -> None:
    """The edit rates go on learning: they alone hide it from a look at all parameters."""
    with pytest.raises(TrainingFault) as error:
        train(tiny_world, tmp_path, StillTransforms(missing))
    assert fault(error) == "every gradient of a parameter group is zero"


def test_edit_that_changes_nothing_stops(tiny_world: TinyWorld, tmp_path: Path) -> None:
    still = MENDConfig(rank=4, edit_rate=0.0)
    with pytest.raises(TrainingFault, match=r"check the editor's edit rate \(model\.mend\.edit_rate") as error:
        train(tiny_world, tmp_path, mend=still, edit_rate_learning_rate=0.0)
    assert fault(error) == "the edited logits equal the base model's"


def test_locality_kl_of_zero_stops(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(TrainingFault, match="bfloat16 rounds very small updates away") as error:
        train(tiny_world, tmp_path, LostLocality())
    assert fault(error) == "the locality KL is exactly zero"


def test_fewer_faults_than_the_patience_are_borne(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """The loss is NaN in the last 2 of 6 steps."""
    assert train(tiny_world, tmp_path, PoisonedParameter(batch=4)).global_step == 6


def test_faults_must_come_in_a_row() -> None:
    watchdog = Watchdog(patience=2)
    for total in (torch.nan, 1.0, torch.inf, 1.0, torch.nan, 1.0, torch.nan):
        after_a_step(watchdog, total)
    with pytest.raises(TrainingFault, match="2 times in a row"):
        after_a_step(watchdog, torch.nan)


def after_a_step(watchdog: Watchdog, total: float) -> None:
    """Show the watchdog a step with this loss."""
    editor = MEND(BaseModelConfig("nothing"))
    editor.last_losses = EpisodeLosses(*map(torch.tensor, (total, 1.0, 1.0, 1.0)))
    batch: Any = SimpleNamespace(locality=SimpleNamespace(num_texts=1))
    watchdog.on_train_batch_end(Trainer(logger=False, enable_checkpointing=False), editor, None, batch, 0)


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"every_n_steps": 0}])
def test_settings_are_checked(arguments: dict[str, int]) -> None:
    with pytest.raises(EditorError, match="must be at least 1"):
        Watchdog(**arguments)


def test_checks_may_be_rare(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """With a check every 4th batch of an epoch of 6, a fault in all 6 steps is seen twice."""
    poison = PoisonedParameter(batch=0)
    assert train(tiny_world, tmp_path, poison, watchdog=Watchdog(3, every_n_steps=4)).global_step == 6
    with pytest.raises(TrainingFault):
        train(tiny_world, tmp_path, poison, watchdog=Watchdog(2, every_n_steps=4))
