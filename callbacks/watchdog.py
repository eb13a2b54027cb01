"""`Watchdog`: stops a run that learns nothing, and says why, before it has cost a week of GPU time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from editors.common.errors import EditorError
from editors.texts.episodes import EditBatch
from editors.training.learned import LearnedEditor

# The passes with and without the edit group texts differently, so logits that are equal differ in their last digits.
_ROUNDING = 1e-5


class TrainingFault(EditorError):
    """Training is broken in a way that more steps will not mend."""


_EDIT_RATE = "the editor's edit rate (model.mend.edit_rate for MEND, model.ke.edit_rate for KE)"
_REMEDIES = {
    "the loss is NaN or infinite": (
        "the learning rate or the edit rates are too high, or half precision overflows",
        "lower model.training.learning_rate, add model.training.warmup_steps, set trainer.gradient_clip_val, or use "
        "bf16 or 32-bit",
    ),
    "a gradient of the hypernetwork is NaN or infinite": (
        "an activation overflows in the edited layers, or a normaliser divides by a vanishing variance",
        "lower model.training.learning_rate, set trainer.gradient_clip_val, or load the base model in float32 or "
        "bfloat16",
    ),
    "every gradient of a parameter group is zero": (
        "no edit site influences the loss: the answers' tokens carry no gradient, or a site is not on the path",
        "check base_model.sites, and that the network uses all of its parameters",
    ),
    "the locality KL is exactly zero": (
        "the edit does not reach the locality texts: the edit is zero, or it is lost in the base model's precision",
        f"check {_EDIT_RATE} and base_model.dtype; bfloat16 rounds very small updates away",
    ),
    "the edited logits equal the base model's": (
        "the edit changes nothing: edit rates are zero, or the edited layers are not used by this model",
        f"check {_EDIT_RATE} and base_model.sites",
    ),
}


class Watchdog(Callback):
    """Stops training after a fault in `patience` consecutive steps.

    Looked for: a NaN or infinite loss or gradient, a group of the optimiser's parameters all of whose gradients are
    exactly zero or missing, a locality KL of exactly zero, and an edit that changes no logit of the locality texts. The
    checks run every `every_n_steps` steps, because each waits for the device.

    Args:
        patience: consecutive checks with the same fault before the run is stopped.
        every_n_steps: steps between two checks.
    """

    def __init__(self, patience: int = 5, every_n_steps: int = 1) -> None:
        if patience < 1 or every_n_steps < 1:
            raise EditorError(f"patience and every_n_steps must be at least 1, got {patience} and {every_n_steps}")
        self.patience = patience
        self.every_n_steps = every_n_steps
        self._seen: dict[str, int] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients just before they are used, in each parameter group on its own."""
        if trainer.global_step % self.every_n_steps:
            return
        losses = getattr(pl_module, "last_losses", None)
        # Of a loss that is not finite no gradient is; it is the loss that is told. Likewise with an edit of zero.
        if losses is not None and not torch.isfinite(losses.total):
            return
        groups = [[p for p in group["params"] if p.requires_grad] for group in optimizer.param_groups]
        if all(p.grad is None for group in groups for p in group):  # DeepSpeed keeps gradients elsewhere
            return
        largest = [_largest_gradient(group) for group in groups if group]
        still = losses is not None and _is_zero(losses.shift)
        broken = not all(map(math.isfinite, largest))
        self._count("a gradient of the hypernetwork is NaN or infinite", broken)
        self._count("every gradient of a parameter group is zero", 0.0 in largest and not still)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Look at the losses of the step."""
        if batch_idx % self.every_n_steps or not isinstance(pl_module, LearnedEditor) or pl_module.last_losses is None:
            return
        losses = pl_module.last_losses
        self._count("the loss is NaN or infinite", not bool(torch.isfinite(losses.total)))
        self._count(
            "the edited logits equal the base model's", losses.shift is not None and bool(losses.shift < _ROUNDING)
        )
        self._count("the locality KL is exactly zero", batch.locality.num_texts > 0 and _is_zero(losses.locality))

    def _count(self, fault: str, present: bool) -> None:
        self._seen[fault] = self._seen.get(fault, 0) + 1 if present else 0
        if self._seen[fault] >= self.patience:
            cause, remedy = _REMEDIES[fault]
            raise TrainingFault(f"{fault}, {self.patience} times in a row. Likely cause: {cause}. Remedy: {remedy}.")


def _largest_gradient(parameters: Sequence[Tensor]) -> float:
    """The largest absolute value; NaN where one is NaN, zero where no loss reaches the parameters."""
    gradients = [p.grad.detach().abs().max() for p in parameters if p.grad is not None]
    return float(torch.stack(gradients).max()) if gradients else 0.0


def _is_zero(value: Tensor | None) -> bool:
    """Whether `value` is exactly zero; what is not computed is not."""
    return value is not None and bool(value.detach() == 0)
