"""SIGTERM, as schedulers send it, and Ctrl-C: the run saves, ends, and goes on as if nothing had been."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from callbacks.preemption import EXIT_CODE, _going_on
from tests.lifecycle.test_resume import Case, assert_same_end, saved_batches
from tests.tiny_world import TinyWorld, run

pytestmark = pytest.mark.slow

SAVER = {"class_path": "callbacks.SaveOnSigterm"}
VALIDATION = {"limit_val_batches": 1.0, "val_check_interval": 4}


def sigterm(**when: Any) -> dict[str, Any]:
    """The callback that sends it."""
    return {"class_path": "tests.lifecycle.crashes.SigtermAtBatch", "init_args": when}


def stopped(case: Case, world: TinyWorld, root: Path, **when: Any) -> None:
    """Run until a signal comes; assert that the run ends there, and cleanly."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as end:
        run(["fit", f"--config={case.config(world, root, SAVER, sigterm(**when))}"])
    assert end.value.code == (130 if when.get("name") == "SIGINT" else EXIT_CODE)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def logged_steps(root: Path) -> list[int]:
    """The steps that have a row of losses in `metrics.csv`."""
    (path,) = root.glob("*/metrics.csv")
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/total_loss"]]


# 5 ends an epoch; 7 is where a validation comes.
@pytest.mark.parametrize(("name", "batch"), [("SIGTERM", 5), ("SIGTERM", 7), ("SIGINT", 5), ("SIGINT", 7)])
def test_the_batch_is_finished_and_resuming_is_exact(
    tiny_world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, batch: int
) -> None:
    case, root = Case(VALIDATION, {}, {}), tmp_path / "runs"
    stopped(case, tiny_world, root, batch=batch, name=name)
    assert saved_batches(root) == batch + 1
    assert logged_steps(root) == list(range(batch + 1))
    assert re.search(rf"{'Ctrl-C' if name == 'SIGINT' else name}: saved .* --ckpt_path=\S+last.ckpt", caplog.text)
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


@pytest.mark.filterwarnings("ignore")
def test_a_second_ctrl_c_ends_the_run_at_once(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case, root = Case({}, {}, {}), tmp_path / "runs"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        run(["fit", f"--config={case.config(tiny_world, root, SAVER, sigterm(batch=1, name='SIGINT', times=2))}"])
    assert end.value.code == 1
    assert list(root.rglob("last.ckpt")) == []
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("given", [[], ["--ckpt_path", "last"], ["--ckpt_path=last"]])
def test_the_command_that_goes_on_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "fit", *given, "--config", "a b.yaml"])
    assert _going_on(Path("r/last.ckpt")) == "python train.py fit --config 'a b.yaml' --ckpt_path=r/last.ckpt"


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
