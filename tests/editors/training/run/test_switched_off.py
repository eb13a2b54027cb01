"""Tests of `without_switched_off`: a setting takes away the callbacks that need what it switches off, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from editors.training.run.switched_off import without_switched_off

OTHER, MONITOR, BAR, SAVER = Callback(), LearningRateMonitor(), RichProgressBar(), ModelCheckpoint()


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({}, None),
        ({"logger": None, "enable_progress_bar": None}, None),
        ({"logger": True, "enable_progress_bar": True, "enable_checkpointing": True}, None),
        ({"logger": [CSVLogger(".")]}, None),
        ({"logger": False}, MONITOR),
        ({"logger": []}, MONITOR),
        ({"enable_progress_bar": False}, BAR),
        ({"enable_checkpointing": False}, SAVER),
    ],
)
def test_only_what_is_switched_off_is_left_out(settings: dict[str, Any], left_out: Callback | None) -> None:
    callbacks = [OTHER, MONITOR, BAR, SAVER]
    assert without_switched_off(callbacks, settings) == [callback for callback in callbacks if callback is not left_out]
    assert len(callbacks) == 4
