"""The check of the memory plan runs, and the plan is of the size of what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.plan_check import Outcome, measure, outcome_table
from benchmarks.processes import Case
from tests.tiny_world import write_model, write_tokenizer

# Wide enough for weights and states to be most of what a training takes.
WIDTH = 512


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_planned_and_measured_are_close(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", hidden=WIDTH, intermediate_size=2048)
    write_tokenizer(folder)
    outcome = measure(Case("mend", "single GPU", 16, 24, str(folder)))
    assert 0.7 < outcome.planned / outcome.measured < 1.4
    assert outcome.base_parameters > 10 * WIDTH**2


def test_the_table_shows_both() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(outcome_table([Outcome(Case("ke", "ZeRO-3", 8, 20, "model"), 3e9, 2e9, 1e9, 67_300_000)]))
    row = next(line for line in capture.get().splitlines() if "ke" in line.split())
    cells = ["ke", "ZeRO-3", "2", "8", "67.3", "1.00", "3.00", "2.00", "1.50"]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == cells
