"""`PlanTrainer`: Lightning's Trainer, which saves as often as it is told, and says beforehand what a training takes."""

from __future__ import annotations

from typing import Any, Protocol

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from editors.common.errors import UsageError
from editors.training.learned import LearnedEditor
from editors.training.plan.skeleton import BatchSize
from editors.training.plan.table import show_plan


class Episodes(Protocol):
    """What decides the size of a data module's batches."""

    episodes_per_batch: int
    edits_per_episode: int
    locality_per_edit: int
    max_length: int


def _listed(callbacks: list[Callback] | Callback | None) -> list[Callback]:
    """Lightning takes one, several or none."""
    return [] if callbacks is None else callbacks if isinstance(callbacks, list) else [callbacks]


class PlanTrainer(Trainer):
    """Lightning's Trainer with one more verb and one more setting.

    Args:
        checkpoint_every: write `checkpoints/last.ckpt` after every so many optimiser steps, besides when the callbacks
            do; `null` for no more often than they.
        arguments: Lightning's.

    Raises:
        UsageError: `checkpoint_every` is below 1.
    """

    def __init__(self, *, checkpoint_every: int | None = None, **arguments: Any) -> None:
        if checkpoint_every is not None and checkpoint_every < 1:
            raise UsageError(
                f"trainer.checkpoint_every must be at least 1 (optimiser steps) or null, got {checkpoint_every}"
            )
        if checkpoint_every is not None and arguments.get("enable_checkpointing") is not False:
            # A callback of its own: one that saves by steps would not save at a validation, nor the last step.
            newest = ModelCheckpoint(
                filename="last", enable_version_counter=False, every_n_train_steps=checkpoint_every
            )
            arguments["callbacks"] = [*_listed(arguments.get("callbacks")), newest]
        super().__init__(**arguments)

    def plan(
        self,
        model: LearnedEditor,
        datamodule: Episodes,
        gpus: int | None = None,
        tokens: int = 32,
        answer_tokens: int = 4,
        architecture: str | None = None,
    ) -> None:
        """Show what training takes on each GPU under each strategy, without loading anything.

        Args:
            model: the editor.
            datamodule: its batches.
            gpus: how many GPUs; by default trainer.devices times trainer.num_nodes.
            tokens: of the longest text of the data with its answer.
            answer_tokens: of its longest answer.
            architecture: folder with the base model's config.json, or such a file, if the model is not here.
        """
        episodes, edits = datamodule.episodes_per_batch, datamodule.edits_per_episode
        batch = BatchSize(episodes, edits, datamodule.locality_per_edit, tokens, answer_tokens)
        show_plan(model, batch, datamodule.max_length, gpus or 1, architecture)
