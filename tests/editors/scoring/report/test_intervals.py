"""Tests of `editors.scoring.report.intervals`."""

from __future__ import annotations

from itertools import product

import pytest

from editors.scoring.report.intervals import bootstrapped


def test_the_mean_is_over_cases_and_probes_of_a_case_stay_together() -> None:
    """Two cases: of the four ways to draw them, the means are 0, 1/2, 1/2 and 1."""
    values = [(0, 0.0), (0, 0.0), (0, 0.0), (1, 1.0)]
    number = bootstrapped(values, seed=0)
    assert (number.mean, number.low, number.high) == (0.5, 0.0, 1.0)


def test_the_interval_is_that_of_all_ways_to_draw() -> None:
    """Of four cases with values 0, 0, 0, 1 the 256 ways are few enough to go through."""
    means = sorted(sum(draw) / 4 for draw in product((0.0, 0.0, 0.0, 1.0), repeat=4))
    number = bootstrapped(enumerate([0.0, 0.0, 0.0, 1.0]), seed=0)
    assert number.low == means[int(0.025 * 256)] == 0.0
    assert number.high == means[int(0.975 * 256)] == 0.75


def test_one_case_has_no_width_and_the_seed_decides() -> None:
    assert bootstrapped([(7, 0.25)], seed=3).low == pytest.approx(0.25)
    values = [(case, case / 10) for case in range(11)]
    assert bootstrapped(values, seed=1) == bootstrapped(values, seed=1)
