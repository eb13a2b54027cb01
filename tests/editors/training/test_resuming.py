"""Tests of `editors.training.resuming`: an optimiser's state that does not fit never reaches Adam's kernels."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from editors.training.resuming import optimizer_fault


def groups() -> list[dict[str, Any]]:
    return [{"params": [torch.ones(2, 3), torch.ones(4)]}, {"params": [torch.ones(1)], "lr": 0.5}]


def saved() -> list[Any]:
    parameters = [torch.nn.Parameter(parameter) for group in groups() for parameter in group["params"]]
    own: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}]
    optimizer = torch.optim.Adam(own, lr=0.1)
    for parameter in parameters:
        parameter.sum().backward()
    optimizer.step()
    return [optimizer.state_dict()]


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "none": (lambda states: states.clear(), "the state of 0 optimiser"),
    "two": (lambda states: states.append(states[0]), "the state of 2 optimiser"),
    "a number": (lambda states: states.__setitem__(0, 3), "have no state and param_groups"),
    "no groups": (lambda states: states[0].pop("param_groups"), "have no state and param_groups"),
    "one group": (lambda states: states[0]["param_groups"].pop(), "has 1 group.* the editor 2"),
    "fewer parameters": (lambda states: states[0]["param_groups"][0]["params"].pop(), "the editor's 2 parameters"),
    "no rate": (lambda states: states[0]["param_groups"][1].update(lr="fast"), "group 1 .* has no learning rate"),
    "rate NaN": (lambda states: states[0]["param_groups"][1].update(lr=float("nan")), "has no learning rate"),
    "a state too many": (lambda states: states[0]["state"].update({3: {}}), "a state of parameter 3, the editor has 3"),
    "a text as state": (lambda states: states[0]["state"].update({"a": {}}), "a state of parameter a"),
    "another shape": (
        lambda states: states[0]["state"][0].update(exp_avg=torch.ones(9)),
        r"exp_avg of parameter 0 is not of shape \[2, 3\]",
    ),
    "whole numbers": (
        lambda states: states[0]["state"][1].update(exp_avg_sq=torch.ones(4, dtype=torch.long)),
        r"exp_avg_sq of parameter 1 is not of shape \[4\] in floating point",
    ),
    "no step": (lambda states: states[0]["state"][2].pop("step"), r"step of parameter 2 is not of shape \[\]"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_does_not_fit_is_named(kind: str) -> None:
    states = copy.deepcopy(saved())
    change, message = FAULTS[kind]
    change(states)
    fault = optimizer_fault(states, groups())
    assert fault is not None
    assert re.search(message, fault), fault


def test_what_fits_has_no_fault() -> None:
    assert optimizer_fault(saved(), groups()) is None
    fresh = copy.deepcopy(saved())
    fresh[0]["state"] = {}
    assert optimizer_fault(fresh, groups()) is None
