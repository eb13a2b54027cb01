"""Means over cases, with bootstrap intervals: cases are drawn, each with all of its probes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

_RESAMPLES = 2000
_TAIL = 0.025


@dataclass(frozen=True)
class Number:
    """A mean over cases with its 95 % interval.

    Args:
        mean: the mean.
        low: lower end.
        high: upper end.
    """

    mean: float
    low: float
    high: float


def case_means(values: Iterable[tuple[int, float]]) -> list[float]:
    """The mean of each case's values, in the order of the cases' numbers.

    >>> case_means([(3, 1.0), (0, 0.5), (3, 0.0)])
    [0.5, 0.5]
    """
    by_case: dict[int, list[float]] = defaultdict(list)
    for case, value in values:
        by_case[case].append(value)
    return [sum(own) / len(own) for _, own in sorted(by_case.items())]


def bootstrapped(values: Iterable[tuple[int, float]], seed: int) -> Number:
    """The mean over cases of each case's mean, with a percentile interval.

    Args:
        values: case and value of each probe; at least one.
        seed: of the draws.
    """
    means = torch.tensor(case_means(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(means), (_RESAMPLES, len(means)), generator=generator)
    ends = means[drawn].mean(dim=1).quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64))
    return Number(float(means.mean()), *ends.tolist())
