"""The course of the learning rates: those of transformers, without importing its trainer and all that this imports."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# A course without an end has no total.
_ENDLESS = -1


def scheduled(optimizer: Optimizer, course: str, warmup: int, total: int | None) -> LambdaLR:
    """Learning rates that rise linearly in the warm-up, and then follow a course.

    Args:
        optimizer: of the rates.
        course: "constant", "linear" or "cosine", to 0 at the end.
        warmup: steps of the warm-up.
        total: all steps; `None` for a constant course without an end.
    """
    return LambdaLR(optimizer, partial(share, course=course, warmup=warmup, total=_ENDLESS if total is None else total))


def share(step: int, *, course: str, warmup: int, total: int) -> float:
    """The share of the peak rate at a step.

    >>> [share(step, course="linear", warmup=2, total=6) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup:
        return step / max(1, warmup)
    left = max(1, total - warmup)
    if course == "linear":
        return max(0.0, (total - step) / left)
    if course == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / left))))
    return 1.0
