"""What a block of a model gives out, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class BlockOutputs:
    """Takes down what blocks of one model give out.

    Attributes:
        are_tuples: whether they return more than hidden states; `None` until one has been seen.
    """

    def __init__(self) -> None:
        self.are_tuples: bool | None = None

    @contextmanager
    def of(self, block: nn.Module) -> Iterator[list[Tensor]]:
        """Inside this context every forward pass of `block` adds its hidden states `[B, T, d]` to the list."""
        states: list[Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> None:
            self.are_tuples = isinstance(output, tuple)
            states.append(output[0] if self.are_tuples else output)

        handle = block.register_forward_hook(record)
        try:
            yield states
        finally:
            handle.remove()
