"""Callbacks that a trainer setting switches off: Lightning refuses the pair, but who gives the setting means it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ProgressBar

_LOG = logging.getLogger(__name__)
_NEEDED_BY: dict[str, tuple[type[Callback], ...]] = {
    "logger": (LearningRateMonitor, DeviceStatsMonitor),
    "enable_progress_bar": (ProgressBar,),
    "enable_checkpointing": (Checkpoint,),
}


def without_switched_off(callbacks: Sequence[Callback], settings: Mapping[str, Any]) -> list[Callback]:
    """The callbacks, less those that need what a setting of the trainer switches off; tells which are left out.

    Args:
        callbacks: all that the configuration lists.
        settings: the trainer's arguments. Off is `false`, and for `logger` also an empty list.
    """
    off = [name for name in _NEEDED_BY if settings.get(name) in (False, [])]
    kept = list(callbacks)
    for name in off:
        for callback in [callback for callback in kept if isinstance(callback, _NEEDED_BY[name])]:
            _LOG.info("trainer.%s is off: %s is left out.", name, type(callback).__name__)
            kept.remove(callback)
    return kept
