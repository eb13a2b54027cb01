"""What an edit costs when many independent ones are asked for in one call, beside a call for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import cpu_seconds
from editors.texts.requests import EditRequest


@dataclass(frozen=True)
class Throughput:
    """CPU-seconds, except `wall`.

    Args:
        edits: how many edits were made.
        separate: of a call for each.
        together: of one call for all.
        one_prompt: of one call for as many edits of the first one's prompt, with the targets of all.
        wall: seconds on the clock of the call for all.
        unit: of a unit, measured between the calls.
    """

    edits: int
    separate: float
    together: float
    one_prompt: float
    wall: float
    unit: float

    def units_per_edit(self) -> float:
        """What one of the edits made in one call costs, in units."""
        return self.together / self.edits / self.unit

    def units_per_edit_of_one_prompt(self) -> float:
        """The same, where all edits are of one prompt."""
        return self.one_prompt / self.edits / self.unit

    def ratio(self) -> float:
        """The cost of one call over that of a call for each."""
        return self.together / self.separate

    def edits_per_second(self) -> float:
        """Edits made in one call, in a second on the clock."""
        return self.edits / self.wall


def measure_throughput(
    edit_each: Callable[[Sequence[EditRequest]], object], requests: Sequence[EditRequest], unit: Callable[[], float]
) -> Throughput:
    """Make the edits of `requests` in one call, and as many of one prompt, in the middle of a call for each of them.

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
    of_one_prompt = [EditRequest(requests[0].prompt, request.target) for request in requests]
    one_prompt = cpu_seconds(lambda: edit_each(of_one_prompt))
    after = unit()
    separate += sum(cpu_seconds(partial(edit_each, [request])) for request in requests[half:])
    return Throughput(len(requests), separate, together, one_prompt, wall, sorted((before, between, after))[1])
