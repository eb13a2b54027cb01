"""`AnswerLogits`: logits at answer positions, made a few rows at a time, so that a table of all need never be there.

Shape legend: N answer tokens, V vocabulary, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# So many rows at once that reading the head's weights for them costs little beside the arithmetic.
_ROWS_AT_ONCE = {"cpu": 64}
_ROWS_AT_ONCE_ELSEWHERE = 512

LossOfRows = Callable[[Tensor, slice], Tensor]
"""From the logits `[n, V]` of some rows, and which rows these are, to the loss `[n]` of each."""


class AnswerLogits:
    """Logits `[N, V]` at answer positions.

    Args:
        states: `[N, d]` what comes out of the last block; without a head the logits themselves.
        head: from such states to logits; a row's logits depend on its own states only.
    """

    def __init__(self, states: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> None:
        self._states = states
        self._head = head

    def __len__(self) -> int:
        """N."""
        return len(self._states)

    def split(self, counts: Sequence[int]) -> list[AnswerLogits]:
        """The logits of so many rows each, one after the other."""
        return [AnswerLogits(states, self._head) for states in self._states.split(list(counts))]

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """`[n, V]` the logits of some rows, at least one, or of all."""
        states = self._states[rows]
        return states if self._head is None else self._head(states)

    def losses(self, of_rows: LossOfRows) -> Tensor:
        """`[N]` in float32 a loss of each row, differentiable once in the states.

        Where there is a head, the gradient of a row's loss is computed with the loss, and kept in place of its logits:
        d numbers, not V. So nothing else in the loss can learn.

        Args:
            of_rows: the loss of some rows; that of a row must depend on no other row's logits.
        """
        if not len(self):
            return self._states.new_zeros(0, dtype=torch.float32)
        if self._head is None:
            return of_rows(self._states, slice(0, len(self)))
        states = self._states if torch.is_grad_enabled() else self._states.detach()
        losses: Tensor = _Losses.apply(states, self._head, of_rows)
        return losses

    def target_losses(self, loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Tensor:
        """`[N]` as `losses`, of a `loss` that takes logits `[n, V]` and their targets `[n]`.

        Args:
            loss: gives `[n]`.
            targets: `[N]`.
        """
        return self.losses(lambda logits, rows: loss(logits, targets[rows]))


class _Losses(torch.autograd.Function):
    """`AnswerLogits.losses` where there is a head."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Callable[[Tensor], Tensor], of_rows: LossOfRows) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        count = _ROWS_AT_ONCE.get(states.device.type, _ROWS_AT_ONCE_ELSEWHERE)
        for start in range(0, len(states), count):
            rows = slice(start, min(start + count, len(states)))
            if not ctx.needs_input_grad[0]:
                losses.append(of_rows(head(states[rows]), rows))
                continue
            with torch.enable_grad():
                own = states[rows].detach().requires_grad_()
                found = of_rows(head(own), rows)
                gradients += torch.autograd.grad(found.sum(), own)
            losses.append(found.detach())
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_states,) = ctx.saved_tensors
        return (gradient.unsqueeze(-1) * of_states).to(of_states.dtype), None, None
