"""Phases: who listens hears of each, in order, and of none afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn

from editors.common.phases import forward_as_phase, heard_by, phase


class Notes:
    """Writes down what begins and ends."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def listen(self, name: str) -> Iterator[None]:
        self.lines.append(f"{name} begins")
        try:
            yield
        finally:
            self.lines.append(f"{name} ends")


@phase("inner")
def inner() -> None:
    """A function that is a phase."""


def test_a_listener_hears_of_phases_inside_of_phases() -> None:
    notes = Notes()
    with heard_by(notes.listen), phase("outer"):
        inner()
    inner()
    assert notes.lines == ["outer begins", "inner begins", "inner ends", "outer ends"]


def test_several_may_listen() -> None:
    one, other = Notes(), Notes()
    with heard_by(one.listen):
        with heard_by(other.listen):
            inner()
        inner()
    assert (len(one.lines), len(other.lines)) == (4, 2)


class Failing(nn.Module):
    def forward(self, _: torch.Tensor) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("module", [nn.Identity(), Failing()])
def test_a_forward_pass_is_a_phase_even_if_it_fails(module: nn.Module) -> None:
    notes = Notes()
    with heard_by(notes.listen), forward_as_phase(module, "pass"), suppress(ZeroDivisionError):
        module(torch.ones(1))
    assert notes.lines == ["pass begins", "pass ends"]
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
