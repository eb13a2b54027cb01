"""Settings of the trainer that Lightning takes and that mean nothing, or that it refuses in paragraphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from editors.common.errors import UsageError

_LARGEST_SEED = 2**32 - 1
_ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "gpu": lambda: torch.cuda.is_available() or torch.backends.mps.is_available(),
    "mps": torch.backends.mps.is_available,
}
_WITHOUT_LIMIT = "-1 for no limit"


def require_seed(seed: Any) -> None:
    """Check a seed before it is set.

    Raises:
        UsageError: numpy has no such seed.
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed <= _LARGEST_SEED:
        raise UsageError(f"seed_everything {seed} is out of range (allowed: 0 to {_LARGEST_SEED}); give another number")


def require_gpus(gpus: int | None) -> None:
    """Check for how many GPUs a plan is asked.

    Raises:
        UsageError: for none.
    """
    if gpus is not None and gpus < 1:
        raise UsageError(f"--gpus must be at least 1, got {gpus}; leave it out for those of trainer.devices")


def require_trainer(settings: Mapping[str, Any], verb: str) -> None:
    """Check the trainer's settings before anything is made or loaded.

    Args:
        settings: its arguments.
        verb: what is asked for.

    Raises:
        UsageError: one is out of range, or cannot be had on this machine.
    """
    if settings.get("barebones"):
        raise UsageError(
            "trainer.barebones true leaves out loggers, checkpoints and callbacks, and a run is made of them: leave it "
            "out. --trainer.fast_dev_run true tries one batch of everything"
        )
    if verb == "fit":
        for name in ("max_steps", "max_epochs"):
            _require(settings, name, 1, f"{_WITHOUT_LIMIT}, or at least 1", also=-1)
        _require(settings, "limit_train_batches", 0, "above 0", above=True)
    for name in ("limit_val_batches", "limit_test_batches", "gradient_clip_val", "log_every_n_steps"):
        _require(settings, name, 0, "at least 0")
    for name in ("accumulate_grad_batches", "num_nodes", "check_val_every_n_epoch"):
        _require(settings, name, 1, "at least 1")
    _require(settings, "num_sanity_val_steps", 0, "-1 for all, or at least 0", also=-1)
    _require_interval(settings)
    _require_devices(settings)


def _require(
    settings: Mapping[str, Any], name: str, least: float, allowed: str, also: float | None = None, above: bool = False
) -> None:
    value = settings.get(name)
    if not isinstance(value, int | float) or value == also:
        return
    if not math.isfinite(value) or value < least or (above and value == least):
        raise UsageError(f"trainer.{name} {value} is out of range (allowed: {allowed})")


def _require_interval(settings: Mapping[str, Any]) -> None:
    """`val_check_interval` counts steps where it is a whole number, and parts of an epoch where it is not."""
    value = settings.get("val_check_interval")
    if not isinstance(value, int | float):
        return
    whole = isinstance(value, int)
    if (whole and value < 1) or (not whole and not 0 < value <= 1):
        raise UsageError(
            f"trainer.val_check_interval {value} is out of range (allowed: a number of steps from 1 on, or a part of "
            "an epoch, above 0.0 and at most 1.0). To leave validation out, give --trainer.limit_val_batches 0"
        )
    if not whole and settings.get("check_val_every_n_epoch") is None:
        raise UsageError(
            f"trainer.val_check_interval {value} is a part of an epoch, and with trainer.check_val_every_n_epoch null "
            "steps are counted over all epochs: give a number of steps, or --trainer.check_val_every_n_epoch 1"
        )


def _require_devices(settings: Mapping[str, Any]) -> None:
    accelerator, devices = settings.get("accelerator"), settings.get("devices")
    available = _ACCELERATORS.get(str(accelerator))
    if available is not None and not available():
        raise UsageError(
            f"trainer.accelerator {accelerator}: torch finds no such device on this machine. Add --config "
            "configs/strategy/cpu.yaml, or install torch for your GPU"
        )
    if devices in (0, "0", []):
        raise UsageError(
            f"trainer.devices {devices} leaves no device (allowed: at least 1, a list of numbers, or auto)"
        )
