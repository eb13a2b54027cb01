"""Tests of `editors.training.run.quiet` and `editors.common.quiet`."""

from __future__ import annotations

import logging
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core import rank_zero
from transformers.utils import logging as transformers_logging

from editors.common.quiet import quiet_models
from editors.training.run.quiet import quiet_trainer


def test_lines_about_nothing_are_left_out_and_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    quiet_trainer()
    quiet_trainer()
    assert sum(type(each).__name__ == "_Chosen" for each in rank_zero.log.filters) == 1
    with caplog.at_level(logging.INFO, logger=rank_zero.log.name):
        rank_zero.log.propagate, before = True, rank_zero.log.propagate
        for line in ("💡 Tip: try this", "TPU available: False, using: 0 TPU cores", "TPU available: True", "Seed set"):
            rank_zero_info(line)
        rank_zero.log.propagate = before
    assert caplog.messages == ["TPU available: True", "Seed set"]


def test_warnings_about_what_is_meant_are_left_out() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_trainer()
        warnings.warn("Found 59 module(s) in eval mode at the start of training.", stacklevel=1)
        warnings.warn("The dirpath has changed from 'a' to 'b'", stacklevel=1)
        warnings.warn("The loss is strange", stacklevel=1)
    assert [str(each.message) for each in seen] == ["The loss is strange"]


@pytest.mark.parametrize("watched", [False, True])
def test_bars_of_loading_are_shown_to_those_who_watch(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = transformers_logging.is_progress_bar_enabled()
    monkeypatch.setattr("sys.stderr.isatty", lambda: watched, raising=False)
    try:
        transformers_logging.enable_progress_bar()
        quiet_models()
        assert transformers_logging.is_progress_bar_enabled() is watched
    finally:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
    kernel = logging.getLogger("bitsandbytes.backends.cpu.ops")
    assert not kernel.isEnabledFor(logging.WARNING)
