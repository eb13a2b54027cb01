"""`RunProgressBar`: how far the whole run is, on a terminal."""

from __future__ import annotations

import math
import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class RunProgressBar(RichProgressBar):
    """Lightning's bar, but it counts the steps of the run where their number is known, and so the time that remains.

    Nothing is shown where the output is no terminal: a bar's lines would only hide what is said there.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show nothing where nobody watches."""
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    @property
    def total_train_batches(self) -> float:
        """Return all steps of the run; the batches of the epoch where the run has no end."""
        return self.trainer.estimated_stepping_batches if self._counts_steps() else super().total_train_batches

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the bar of the epochs before."""
        if not self._counts_steps():
            super().on_train_epoch_start(trainer, pl_module)
        elif self.is_enabled and self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()
            self._update(self.train_progress_bar_id, trainer.global_step)  # some are behind, where a run goes on

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the steps that are done."""
        done = trainer.global_step if self._counts_steps() else batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, done - 1)

    def _counts_steps(self) -> bool:
        return math.isfinite(self.trainer.estimated_stepping_batches)

    def _get_train_description(self, current_epoch: int) -> str:
        """Return what stands before the bar; Lightning names the last epoch that there may be."""
        return "Training steps" if self._counts_steps() else f"Epoch {current_epoch}"
