"""Gradients of a step do not live on into the next one, where activations need the room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from datamodules.base import EditDataModule
from datamodules.sources import ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.lm.losses import EpisodeLosses
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.episodes import EditBatch
from tests.tiny_world import TinyWorld, as_from_a_shell


class _Watched(MEND):
    """Notes before each forward pass whether there are gradients."""

    def __init__(self, base_model: BaseModelConfig, **settings: Any) -> None:
        super().__init__(base_model, **settings)
        self.gradients: list[bool] = []

    def episode_losses(self, batch: EditBatch) -> EpisodeLosses:
        self.gradients.append(any(parameter.grad is not None for parameter in self.network.parameters()))
        return super().episode_losses(batch)


@pytest.mark.parametrize(
    ("accumulated", "expected"),
    [(1, [False, False, False, False]), (2, [False, True, False, True])],
    ids=["each batch a step", "two batches a step"],
)
def test_a_forward_pass_finds_the_gradients_of_its_own_step_only(
    tiny_world: TinyWorld, tmp_path: Path, accumulated: int, expected: list[bool]
) -> None:
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    data = EditDataModule(base, [ZsRE("train.json")], [], [], path=str(tiny_world.data), episodes_per_batch=1)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4 // accumulated,
        accumulate_grad_batches=accumulated,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )
    editor = _Watched(base, mend=MENDConfig(rank=4))
    with as_from_a_shell():
        trainer.fit(editor, datamodule=data)
    assert editor.gradients == expected
