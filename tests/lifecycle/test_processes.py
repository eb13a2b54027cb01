"""Several processes on a CPU: they end with the numbers that one process finds, however few records there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_world import TinyWorld, run_process

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def metrics(folder: Path) -> Any:
    return json.loads((folder / "results" / "metrics.json").read_text())["metrics"]


def test_fewer_validation_records_than_processes_are_scored_once_each(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    few = "--data.limit_val=2"
    several = ("--trainer.devices=3", "--trainer.strategy=ddp")
    short = ("--trainer.max_steps=1", "--trainer.val_check_interval=1")
    done = run_process(tiny_world.arguments("fit", root, few, *several, *short))
    assert done.returncode == 0, done.stderr
    (folder,) = root.iterdir()
    assert done.stdout.count("answers before and after a single edit") == 1
    assert json.loads((folder / "results" / "examples.json").read_text())
    alone = tiny_world.run("validate", root, few, "--ckpt_path=last")
    assert metrics(folder) == pytest.approx(metrics(Path(alone.trainer.default_root_dir)), abs=1e-6)
