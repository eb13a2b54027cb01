"""Which part of its work a model is in, for whoever measures it: the clock of a benchmark, the trace of `plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar

from torch import nn

PREFIX, CAPTURE, EDITED = "frozen prefix", "capture", "edited passes"
HYPERNETWORK, LOSSES = "hypernetwork", "losses"

Listener = Callable[[str], AbstractContextManager[object]]
"""From the name of a phase to a context that is entered with the phase, and left with it."""

_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Inside this context, or in a function that it decorates, phase `name` is on; phases may hold others."""
    with ExitStack() as stack:
        for listener in _LISTENERS.get():
            stack.enter_context(listener(name))
        yield


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Inside this context `listener` hears of every phase."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


@contextmanager
def forward_as_phase(module: nn.Module, name: str) -> Iterator[None]:
    """Inside this context every forward pass of `module` is phase `name`."""
    running: list[ExitStack] = []

    def begin(*_: object) -> None:
        stack = ExitStack()
        stack.enter_context(phase(name))
        running.append(stack)

    def end(*_: object) -> None:
        running.pop().close()

    with ExitStack() as hooks:
        hooks.callback(module.register_forward_pre_hook(begin).remove)
        hooks.callback(module.register_forward_hook(end, always_call=True).remove)
        yield
