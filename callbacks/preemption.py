"""`SaveOnSigterm`: a run that is told to stop saves its newest state first."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

_LOG = logging.getLogger(__name__)
# What a shell reports of a process that SIGTERM ended.
EXIT_CODE = 128 + signal.SIGTERM


class SaveOnSigterm(Checkpoint):
    """After SIGTERM, finishes the optimiser step, writes `checkpoints/last.ckpt`, and ends the run with exit code 143.

    Schedulers send SIGTERM before a time limit or a preemption; `--ckpt_path last` goes on from there. Any of the
    processes may get the signal: they agree after each batch, so that all of them save. Lightning (2.6) communicates
    inside its signal handler, where another message may be under way; so this replaces its handler while training.
    """

    def __init__(self) -> None:
        self._told = self._stopping = False
        self._previous: Any = None
        # Gradients that are being accumulated are in no checkpoint.
        self._steps = 0
        self._between_steps = False
        self._progress: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal from here on."""
        self._told, self._stopping = trainer.received_sigterm, False
        self._steps, self._between_steps = trainer.global_step, False
        self._previous = signal.signal(signal.SIGTERM, self._hear)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, if it is time."""
        self._between_steps, self._steps = trainer.global_step != self._steps, trainer.global_step
        self._progress = trainer.fit_loop.state_dict()
        self._stop_if_told(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Likewise in the middle of a validation, which may take longer than a scheduler waits."""
        self._stop_if_told(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A validation that is left leaves no trace: what it had scored so far is in no checkpoint either."""
        if self._stopping:
            checkpoint["loops"]["fit_loop"] = self._progress

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the signal to whom it belonged."""
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        self._previous, self._between_steps = None, False

    def _hear(self, _: int, __: FrameType | None) -> None:
        self._told = True

    def _stop_if_told(self, trainer: Trainer) -> None:
        if not self._between_steps or getattr(trainer, "fast_dev_run", False):
            return
        told = torch.tensor(float(self._told), device=trainer.strategy.root_device)
        if not trainer.strategy.reduce(told, reduce_op="sum"):
            return
        self._stopping = True
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(path)
        _LOG.warning("SIGTERM: saved %s; go on with --ckpt_path last.", path)
        # Lightning's launcher kills the first process when another ends with an error.
        raise SIGTERMException(EXIT_CODE if trainer.is_global_zero else 0)
