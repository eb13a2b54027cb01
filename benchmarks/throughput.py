"""What an edit costs when many independent ones are asked for in one call, beside a call for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import cpu_seconds
from editors.requests import EditRequest


@dataclass(frozen=True)
class Throughput:
    """CPU-seconds, except `wall`.

    Args:
        edits: how many edits were made.
        separate: of a call for each.
        together: of one call for all.
        wall: seconds on the clock of that call.
        unit: of a unit, measured between the calls.
    """

    edits: int
    separate: float
    together: float
    wall: float
    unit: float

    def units_per_edit(self) -> float:
        """What one of the edits made in one call costs, in units."""
        return self.together / self.edits / self.unit

    def ratio(self) -> float:
        """The cost of one call over that of a call for each."""
        return self.together / self.separate

    def edits_per_second(self) -> float:
        """Edits made in one call, in a second on the clock."""
        return self.edits / self.wall


def measure_throughput(
    edit_each: Callable[[Sequence[EditRequest]], object], requests: Sequence[EditRequest], unit: Callable[[], float]
) -> Throughput:
    """Make the edits of `requests` in one call, in the middle of a call for each of them.

    Args:
        edit_each: makes an independent edit of each request it is given.
        requests: two or more.
        unit: measures a unit, in CPU-seconds.
    """
    half = len(requests) // 2
    before = unit()
    separate = sum(cpu_seconds(partial(edit_each, [request])) for request in requests[:half])
    between = unit()
    start = time.perf_counter()
    together = cpu_seconds(lambda: edit_each(requests))
    wall = time.perf_counter() - start
    after = unit()
    separate += sum(cpu_seconds(partial(edit_each, [request])) for request in requests[half:])
    return Throughput(len(requests), separate, together, wall, sorted((before, between, after))[1])
