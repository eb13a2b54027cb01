"""A caller's own model, given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def flags_restored(model: nn.Module) -> Iterator[None]:
    """Afterwards modules of `model` are in training mode, and parameters want gradients, as before."""
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
