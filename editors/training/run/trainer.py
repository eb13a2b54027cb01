"""`PlanTrainer`: Lightning's Trainer, which can also say beforehand what a training takes."""

from __future__ import annotations

from typing import Protocol

from lightning import Trainer

from editors.training.learned import LearnedEditor
from editors.training.plan.skeleton import BatchSize
from editors.training.plan.table import show_plan


class Episodes(Protocol):
    """What decides the size of a data module's batches."""

    episodes_per_batch: int
    edits_per_episode: int
    locality_per_edit: int
    max_length: int


class PlanTrainer(Trainer):
    """Lightning's Trainer with one more verb."""

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
