"""KE's constrained objective: stay within margins while the edit is learned (De Cao et al. 2021).

Shape legend: E episodes, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editors.common.autocast import without_autocast
from editors.common.errors import EditorError
from editors.common.sharding import overwrite, whole
from editors.edits.low_rank import LowRankEdit


@dataclass(frozen=True)
class Margin:
    """How far a quantity may go.

    Args:
        start: the margin at the start of training. Paper's code: 1e-3 for sequences.
        end: the smallest margin it is annealed to. Paper's code: 1e-5 for the KL, 1e-7 for the norm.

    Raises:
        EditorError: not `0 < end <= start`.
    """

    start: float = 1e-3
    end: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.end <= self.start:
            raise EditorError(
                f"a margin (model.kl_margin, model.norm_margin) needs 0 < end <= start, got start {self.start} and end "
                f"{self.end}; set both"
            )


class Constraint(nn.Module):
    """`multiplier * (value - margin)`, whose multiplier climbs while the value is above the margin.

    Args:
        margin: where the margin starts and ends.
    """

    margin: Tensor

    def __init__(self, margin: Margin) -> None:
        super().__init__()
        self.end = margin.end
        self.multiplier = nn.Parameter(torch.ones(1))
        self.register_buffer("margin", torch.full((1,), margin.start))

    def forward(self, value: Tensor) -> Tensor:
        """The penalty on `value` `[]`. Its gradient descends in the value and ascends in the multiplier."""
        # The value of the multiplier, with a gradient of -1: one optimiser then does both.
        ascending = 2 * self.multiplier.detach() - self.multiplier
        return (ascending * (value - self.margin)).sum()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the multiplier from falling below 0 (a constraint never pulls outwards)."""
        with whole([self.multiplier]):
            value = self.multiplier.clone()
        if value < 0:
            overwrite(self.multiplier, torch.zeros_like(value))

    @torch.no_grad()
    def tighten(self, factor: float) -> None:
        """Multiply the margin by `factor`, down to its end."""
        self.margin.mul_(factor).clamp_(min=self.end)


def update_norm(edit: LowRankEdit) -> Tensor:
    """`[]`: mean over episodes and sites of the root mean square of a weight's update (De Cao et al. 2021, p = 2).

    From the factors: `|u^T v|^2 = sum of (u u^T) o (v v^T)`, so that no update of the weight's size is formed.
    """
    norms = []
    with without_autocast(edit.device):
        for update in edit.updates.values():
            squares = ((update.u @ update.u.mT) * (update.v @ update.v.mT)).sum(dim=(1, 2))
            # The root has no finite slope at 0.
            tiny = torch.finfo(squares.dtype).tiny
            norms.append((squares / (update.u.shape[-1] * update.v.shape[-1])).clamp(min=tiny).sqrt())
    return torch.stack(norms).mean()
