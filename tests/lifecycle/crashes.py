"""Callbacks that end a run in the middle, for tests of resuming."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, LightningModule, Trainer

from editors.training.module import Editor


class Crash(RuntimeError):
    """The simulated fault."""


class CrashAtBatch(Callback):
    """Raises `Crash` before batch number `batch` (counted over all epochs) is computed.

    Args:
        batch: the first batch that is not trained on.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Crash when the batch has come."""
        if trainer.fit_loop.total_batch_idx == self.batch:
            self.crash()

    def crash(self) -> None:
        """End the run."""
        raise Crash(f"batch {self.batch}")


class ChangeBaseModel(Callback):
    """Writes to the base model after the first batch, which nothing may do."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add to some weights."""
        if batch_idx == 0:
            assert isinstance(pl_module, Editor)
            next(pl_module.lm.model.parameters()).data += 1


class KillAtBatch(CrashAtBatch):
    """Like `CrashAtBatch`, but as the out-of-memory killer does it: no handler and no clean-up runs."""

    def crash(self) -> None:
        """Kill this process."""
        os.kill(os.getpid(), signal.SIGKILL)


class SigtermAtBatch(Callback):
    """Sends SIGTERM to this process, as a scheduler does, and lets the run go on.

    Args:
        batch: before which batch of all epochs; in the validation after it if `in_validation`.
        in_validation: see above.
        name: of the signal; SIGINT is what Ctrl-C sends.
        times: how often it is sent.
    """

    def __init__(self, batch: int, in_validation: bool = False, name: str = "SIGTERM", times: int = 1) -> None:
        self.batch, self.in_validation = batch, in_validation
        self.number, self.times = signal.Signals[name], times

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Send it when the batch has come."""
        self._send(trainer, in_validation=False)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Likewise."""
        self._send(trainer, in_validation=True)

    def _send(self, trainer: Trainer, *, in_validation: bool) -> None:
        if in_validation == self.in_validation and trainer.fit_loop.total_batch_idx == self.batch:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class FullDiskAtBatch(CrashAtBatch):
    """Lets the disk be full from batch number `batch` on: no file may grow beyond 20 kB. Undone by `disk_with_room`."""

    def crash(self) -> None:
        """Fill the disk."""
        fill_disk(20_000)


def fill_disk(room: int) -> None:
    """Let no file grow beyond `room` bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def disk_with_room() -> Iterator[None]:
    """Whatever happens to the disk inside, afterwards it has room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
