"""Callbacks that break training in the ways the watchdog looks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from editors.methods.mend.module import MEND


class PoisonedParameter(Callback):
    """Makes one parameter NaN before the given batch."""

    def __init__(self, batch: int = 0) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, MEND)
        if trainer.fit_loop.total_batch_idx == self.batch:
            pl_module.network.edit_rates.data[0] = torch.nan


class PoisonedGradient(Callback):
    """Makes one gradient infinite, as an overflow in the backward pass does; the loss stays finite."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, MEND)
        assert pl_module.network.edit_rates.grad is not None
        pl_module.network.edit_rates.grad[0] = torch.inf

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Undo what the optimiser did with it."""
        assert isinstance(pl_module, MEND)
        pl_module.network.edit_rates.data.fill_(0.05)


class LostLocality(Callback):
    """Makes the step's locality KL zero, as rounding does where an edit is lost in the base model's precision."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MEND)
        assert pl_module.last_losses is not None
        pl_module.last_losses = replace(pl_module.last_losses, locality=torch.zeros(()))


class StillTransforms(Callback):
    """Lets no gradient reach the transforms; the edit rates keep theirs.

    Args:
        missing: whether the gradients are `None` instead of zero.
    """

    def __init__(self, missing: bool) -> None:
        self.missing = missing

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, MEND)
        for parameter in pl_module.network.transforms.parameters():
            parameter.grad = None if self.missing else torch.zeros_like(parameter)
