"""Does the optimiser's state in a checkpoint fit the editor? Adam's kernels do not ask, and end the process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def optimizer_fault(saved: Any, groups: Sequence[Mapping[str, Any]]) -> str | None:
    """What does not fit; `None` if all does.

    Args:
        saved: `optimizer_states` of a checkpoint, as torch writes them.
        groups: the editor's groups of parameters, whatever of them is sharded.
    """
    if not isinstance(saved, list) or len(saved) != 1:
        return f"it has the state of {len(saved) if isinstance(saved, list) else 'no'} optimiser(s), wanted 1"
    state, found = (saved[0].get(key) for key in ("state", "param_groups")) if isinstance(saved[0], dict) else (0, 0)
    if not isinstance(state, dict) or not isinstance(found, list):
        return "its optimizer_states have no state and param_groups"
    return _groups_fault(found, groups) or _state_fault(state, [p for group in groups for p in group["params"]])


def _groups_fault(found: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> str | None:
    if len(found) != len(groups):
        return f"its optimiser has {len(found)} group(s) of parameters, the editor {len(groups)}"
    for number, (group, own) in enumerate(zip(found, groups, strict=True)):
        numbers = group.get("params") if isinstance(group, dict) else None
        if not isinstance(numbers, list) or len(numbers) != len(own["params"]):
            return f"group {number} of its optimiser does not have the editor's {len(own['params'])} parameters"
        if not isinstance(group.get("lr"), float | int) or not math.isfinite(group["lr"]):
            return f"group {number} of its optimiser has no learning rate"
    return None


def _state_fault(state: Mapping[Any, Any], parameters: Sequence[Tensor]) -> str | None:
    for number, values in state.items():
        if number not in range(len(parameters)) or not isinstance(values, dict):
            return f"its optimiser has a state of parameter {str(number)[:80]}, the editor has {len(parameters)}"
        wanted = torch.Size(getattr(parameters[number], "ds_shape", parameters[number].shape))
        for name in ("step", "exp_avg", "exp_avg_sq"):
            value = values.get(name)
            shape = torch.Size() if name == "step" else wanted
            if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
                return f"its optimiser's {name} of parameter {number} is not of shape {list(shape)} in floating point"
    return None
