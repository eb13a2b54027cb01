"""SIGTERM, as schedulers send it before a time limit: the run saves, ends, and goes on as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from callbacks.preemption import EXIT_CODE
from tests.lifecycle.test_resume import Case, assert_same_end, saved_batches
from tests.tiny_world import TinyWorld, run

pytestmark = pytest.mark.slow

SAVER = {"class_path": "callbacks.SaveOnSigterm"}
VALIDATION = {"limit_val_batches": 1.0, "val_check_interval": 4}


def sigterm(**when: Any) -> dict[str, Any]:
    """The callback that sends it."""
    return {"class_path": "tests.lifecycle.crashes.SigtermAtBatch", "init_args": when}


def stopped(case: Case, world: TinyWorld, root: Path, **when: Any) -> None:
    """Run until SIGTERM comes; assert that the run ends there, and cleanly."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run(["fit", f"--config={case.config(world, root, SAVER, sigterm(**when))}"])
    assert end.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) is before


# 5 ends an epoch; 7 is where a validation comes.
@pytest.mark.parametrize("batch", [5, 7])
def test_the_batch_is_finished_and_resuming_is_exact(tiny_world: TinyWorld, tmp_path: Path, batch: int) -> None:
    case, root = Case(VALIDATION, {}, {}), tmp_path / "runs"
    stopped(case, tiny_world, root, batch=batch)
    assert saved_batches(root) == batch + 1
    resumed = run(["fit", f"--config={case.config(tiny_world, root, SAVER)}", "--ckpt_path=last"])
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    assert_same_end(whole, resumed, batch + 1)


def test_a_validation_is_left_in_the_middle(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case, root = Case(VALIDATION, {}, {}), tmp_path / "runs"
    stopped(case, tiny_world, root, batch=3, in_validation=True)
    assert saved_batches(root) == 4
    resumed = run(["fit", f"--config={case.config(tiny_world, root, SAVER)}", "--ckpt_path=last"])
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    assert_same_end(whole, resumed, 4)


def test_an_optimiser_step_is_finished_where_gradients_are_accumulated(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case, root = Case({"accumulate_grad_batches": 2, "max_steps": 9}, {}, {}), tmp_path / "runs"
    stopped(case, tiny_world, root, batch=2)
    assert saved_batches(root) == 4
    resumed = run(["fit", f"--config={case.config(tiny_world, root, SAVER)}", "--ckpt_path=last"])
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    assert_same_end(whole, resumed, 2)


def test_a_trial_run_is_not_saved(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case, root = Case({"fast_dev_run": True}, {}, {}), tmp_path / "runs"
    run(["fit", f"--config={case.config(tiny_world, root, SAVER, sigterm(batch=0))}"])
    assert list(root.rglob("*.ckpt")) == []
