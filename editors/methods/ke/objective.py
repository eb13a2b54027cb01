"""KE's objectives: its constrained one (De Cao et al. 2021), and the one that MEND has."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor, nn

from editors.edits.composing import low_rank
from editors.edits.protocol import Edit
from editors.lm.losses import answer_nll
from editors.methods.ke.constraint import Constraint, update_norm
from editors.training.objective import EditAndLocality


class ConstrainedObjective(EditAndLocality):
    """`edit + multiplier * (KL - margin)`, and likewise with the update's norm (De Cao et al. 2021).

    Args:
        constraints: "kl", and "norm" where there is one; trained with the hypernetwork.
        smoothing: label smoothing of the edit loss.
    """

    trains_on_edit_prompts = True

    def __init__(self, constraints: nn.ModuleDict, smoothing: float) -> None:
        super().__init__(c_edit=1.0, c_loc=1.0, answer_loss=partial(answer_nll, smoothing=smoothing))
        self.constraints = {name: cast(Constraint, constraint) for name, constraint in constraints.items()}

    def total_loss(self, edit_loss: Tensor, locality_loss: Tensor, edit: Edit) -> Tensor:
        """`[]` the edit loss with the constraints' penalties."""
        total = edit_loss + self.constraints["kl"](locality_loss)
        return total + self.constraints["norm"](update_norm(low_rank(edit))) if "norm" in self.constraints else total

    def after_step(self) -> None:
        """Keep the multipliers from falling below 0."""
        for constraint in self.constraints.values():
            constraint.clamp()

    def logged(self) -> dict[str, Tensor]:
        """Multipliers and margins."""
        multipliers = {f"{name}_multiplier": c.multiplier.detach() for name, c in self.constraints.items()}
        return multipliers | {f"{name}_margin": c.margin for name, c in self.constraints.items()}
