"""`SaveOnSigterm`: a run that is told to stop, by SIGTERM or Ctrl-C, saves its newest state first."""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

_LOG = logging.getLogger(__name__)
# What a shell reports of a process that a signal ended is this and the signal's number.
_ENDED = 128
EXIT_CODE = _ENDED + signal.SIGTERM
_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class SaveOnSigterm(Checkpoint):
    """After SIGTERM or Ctrl-C, finishes the optimiser step, writes `checkpoints/last.ckpt`, and ends the run.

    The exit code is 143 after SIGTERM and 130 after Ctrl-C; a second Ctrl-C ends the run at once and saves nothing.
    Schedulers send SIGTERM before a time limit or a preemption; `--ckpt_path last` goes on from there. Any of the
    processes may get the signal: they agree after each batch, so that all of them save. Lightning (2.6) communicates
    inside its signal handler, where another message may be under way; so this replaces its handler while training.
    """

    def __init__(self) -> None:
        # The number of the signal that came; 0 for none.
        self._told = 0
        self._stopping = False
        self._previous: dict[signal.Signals, Any] = {}
        # Gradients that are being accumulated are in no checkpoint.
        self._steps = 0
        self._between_steps = False
        self._progress: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals from here on."""
        self._told, self._stopping = signal.SIGTERM if trainer.received_sigterm else 0, False
        self._steps, self._between_steps = trainer.global_step, False
        # A trial run has nothing to save: Ctrl-C ends it.
        heard = [number for number in _NAMES if number != signal.SIGINT or not getattr(trainer, "fast_dev_run", False)]
        self._previous = {number: signal.signal(number, self._hear) for number in heard}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, if it is time."""
        self._between_steps, self._steps = trainer.global_step != self._steps, trainer.global_step
        self._progress = trainer.fit_loop.state_dict()
        self._stop_if_told(trainer, after_training=True)

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the signals to whom they belonged: an export or a report has no step to be finished first."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Likewise where training was left with an error."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous, self._between_steps = {}, False

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._told == signal.SIGINT:
                raise KeyboardInterrupt
            _LOG.warning("Ctrl-C: the step is finished, then the run is saved. Once more ends it at once, unsaved.")
        self._told = number

    def _stop_if_told(self, trainer: Trainer, *, after_training: bool = False) -> None:
        if not self._between_steps or getattr(trainer, "fast_dev_run", False):
            return
        told = torch.tensor(float(self._told), device=trainer.strategy.root_device)
        told = trainer.strategy.reduce(told, reduce_op="max")
        if not told:
            return
        self._stopping, number = True, signal.Signals(int(told))
        if after_training:
            _log_step(trainer)
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _LOG.warning("%s: saved %s. Go on with: %s", _NAMES[number], path, _going_on(path))
        # Lightning's launcher kills the first process when another ends with an error.
        raise SIGTERMException(_ENDED + number if trainer.is_global_zero else 0)


def _log_step(trainer: Trainer) -> None:
    """Write the metrics of the step that was finished: Lightning (2.6) does that only after its callbacks."""
    connector = trainer._logger_connector  # noqa: SLF001 - it has no public way
    connector.on_batch_end()
    connector.update_train_step_metrics()
    for logger in trainer.loggers:
        logger.save()


def _going_on(path: Path) -> str:
    """The command line that goes on from a checkpoint."""
    given = iter(sys.argv[1:])
    kept = []
    for argument in given:
        if argument == "--ckpt_path":
            next(given, None)
        elif not argument.startswith("--ckpt_path="):
            kept.append(argument)
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [Path(sys.argv[0]).name]
    return shlex.join([*program, *kept, f"--ckpt_path={path}"])
