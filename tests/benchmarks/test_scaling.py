"""The scaling benchmark on a tiny model: phases add up. No test looks at how long anything takes."""

from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks.processes import Case
from benchmarks.scaling import PHASES, Timing, main, measure, timing_table
from editors.common.errors import UsageError
from tests.tiny_world import TinyWorld

CASE = Case("mend", "single GPU", 4, 24, "model")


@pytest.mark.slow
def test_the_phases_of_a_step_add_up(tiny_world: TinyWorld) -> None:
    timing = measure(Case("mend", "single GPU", 2, 24, str(tiny_world.model), steps=3))
    assert set(timing.phases) == set(PHASES)
    assert all(seconds > 0 for seconds in timing.phases.values())
    assert sum(timing.phases.values()) == pytest.approx(timing.step)


def test_the_table_compares_with_one_process() -> None:
    two = Case("mend", "ZeRO-2", 2, 24, "model")
    phases = dict.fromkeys(PHASES, 0.25)
    console = Console(width=122)
    with console.capture() as capture:
        console.print(timing_table([Timing(CASE, phases, 2.0), Timing(two, phases, 1.0)]))
    assert "steps of 4 edits" in capture.get()
    row = next(line for line in capture.get().splitlines() if "ZeRO-2" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["ZeRO-2", "2", "1.000", "2.00", *["0.25"] * 4]


def test_two_processes_need_an_even_number_of_edits() -> None:
    with pytest.raises(UsageError, match="got 3 and 10"):
        main(["--episodes", "3"])
