"""The memory report of one process; tests/distributed has those of several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from callbacks.memory import peak_bytes, reset_peak, resident_bytes
from tests.tiny_world import TinyWorld

BIG = 50_000_000

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")


def test_the_peak_is_that_since_it_was_reset() -> None:
    assert 0 < resident_bytes() <= peak_bytes() * 1.01
    if not reset_peak():
        pytest.skip("this system does not let the peak be reset")
    before = resident_bytes()
    torch.ones(BIG // 4)
    assert peak_bytes() - before == pytest.approx(BIG, rel=0.1)
    reset_peak()
    assert peak_bytes() < before + BIG / 2


def test_a_process_alone_holds_everything(tiny_world: TinyWorld, tmp_path: Path) -> None:
    report = '--trainer.callbacks=[{"class_path": "callbacks.MemoryReport"}]'
    cli = tiny_world.run("fit", tmp_path / "runs", report, "--trainer.max_steps=1")
    (held,) = json.loads((Path(cli.trainer.default_root_dir) / "results/memory.json").read_text())
    base, editor = (sum(p.numel() for p in m.parameters()) for m in (cli.model.lm, cli.model.network))
    assert (held["base_parameters"], held["base_bytes"]) == (base, 4 * base)
    assert (held["editor_parameters"], held["editor_bytes"]) == (editor, 4 * editor)
    assert 0 < held["bytes_before"] <= held["peak_loading"]
    assert held["peak_training"] > 0
