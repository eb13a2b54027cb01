"""Tests of `callbacks.preemption` without a run; those with one are in `tests/lifecycle/test_sigterm.py`."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

from callbacks.preemption import SaveOnSigterm


def test_signals_are_taken_for_the_training_alone() -> None:
    """An export or a report after it must end at once."""
    trainer: Any = SimpleNamespace(received_sigterm=False, global_step=0)
    module: Any = None
    heard = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in heard]
    callback = SaveOnSigterm()
    callback.on_train_start(trainer, module)
    assert all(signal.getsignal(number) != handler for number, handler in zip(heard, before, strict=True))
    callback.on_train_end(trainer, module)
    assert [signal.getsignal(number) for number in heard] == before
    callback.teardown(trainer, module, "fit")
    assert [signal.getsignal(number) for number in heard] == before
