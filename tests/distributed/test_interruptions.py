"""Two processes are cut off and go on exactly; `interruptions` tries every way under every strategy."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from callbacks.preemption import EXIT_CODE
from tests.distributed.interruptions import Interruption, Outcome, Trial, table, write_into
from tests.tiny_world import TinyWorld

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.mark.parametrize(
    ("strategy", "interruption", "exit_codes", "saved"),
    [
        ("ddp", Interruption("SIGTERM to one", signal.SIGTERM, (1,), 3), {(EXIT_CODE, 0)}, {4, 5, 6}),
        ("zero2", Interruption("disk full", None, (), 5), None, {4}),
        ("zero3", Interruption("kill -9 of both", signal.SIGKILL, (0, 1), 5), {(-signal.SIGKILL,) * 2}, {4, 6}),
    ],
)
def test_nothing_that_was_saved_is_lost(
    tiny_world: TinyWorld,
    tmp_path: Path,
    strategy: str,
    interruption: Interruption,
    exit_codes: set[tuple[int, int]] | None,
    saved: set[int],
) -> None:
    outcome = Trial(tiny_world, strategy, tmp_path, steps=8).survive(interruption)
    assert outcome.equal
    assert outcome.compared > 0
    assert outcome.saved in saved
    assert exit_codes is None or outcome.exit_codes in exit_codes


def test_new_outcomes_take_the_place_of_those_of_the_same_strategy(tmp_path: Path) -> None:
    def outcome(strategy: str, made: int) -> Outcome:
        return Outcome(strategy, "disk full", made, (1, 1), made, 3, equal=True)

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- interruptions -->\n<!-- /interruptions -->\nafter\n")
    write_into(page, [outcome("zero3", 4), outcome("ddp", 5)])
    write_into(page, [outcome("zero3", 6)])
    rows = table([outcome("ddp", 5).row(), outcome("zero3", 6).row()])
    assert page.read_text() == f"before\n<!-- interruptions -->\n{rows}<!-- /interruptions -->\nafter\n"
