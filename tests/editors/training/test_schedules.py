"""Tests of `editors.training.schedules`: the learning rates of transformers, digit by digit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from editors.training.schedules import scheduled

STEPS = 30


def rates(schedule: LambdaLR) -> list[Any]:
    found: list[Any] = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("course", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7, STEPS])
@pytest.mark.parametrize("total", [23, STEPS])
def test_rates_are_those_of_transformers(course: str, warmup: int, total: int) -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=3e-4)

    name = "constant_with_warmup" if course == "constant" else course
    theirs = get_scheduler(name, optimizer(), num_warmup_steps=warmup, num_training_steps=total)
    ours = scheduled(optimizer(), course, warmup, total)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert rates(ours) == rates(theirs)
    ours.load_state_dict(theirs.state_dict())  # checkpoints of earlier versions
    if course == "constant":
        assert rates(scheduled(optimizer(), course, warmup, None)) == rates(scheduled(optimizer(), course, warmup, 9))
