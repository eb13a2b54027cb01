"""A base model in four bits: two processes find what one process finds with the same global batch."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.distributed.pair import item, pair, under
from tests.tiny_world import TinyWorld, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'hyperedit[quantized]'")

STRATEGIES = ("ddp", "zero2")
CALLBACKS = f"--trainer.callbacks={json.dumps([item('callbacks.Watchdog')])}"


def losses(root: Path) -> list[float]:
    """The total loss of each step of the only run below a root."""
    (run_folder,) = root.iterdir()
    with (run_folder / "metrics.csv").open() as file:
        return [float(row["train/total_loss"]) for row in csv.DictReader(file) if row["train/total_loss"]]


def test_losses_are_those_of_one_process(tiny_world: TinyWorld, tmp_path: Path) -> None:
    def arguments(name: str, episodes: int, *more: str) -> list[str]:
        common = [
            "--model.base_model.quantization=nf4",
            "--model.training.lr_schedule=constant",
            "--trainer.max_steps=4",
        ]
        size = f"--data.episodes_per_batch={episodes}"
        return tiny_world.arguments("fit", tmp_path / name, *common, size, CALLBACKS, *more)

    with pair(tmp_path / "output", [arguments(name, 2, *under(name)) for name in STRATEGIES]):
        run(arguments("one", 4))
    assert len(losses(tmp_path / "one")) == 4
    for name in STRATEGIES:
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-6, abs=1e-6), name
