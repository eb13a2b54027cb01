"""What the keys of ordinary texts have in common, and how an edit is kept away from it.

Shape legend: E episodes, R rank, r directions, d_in width of the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from editors.lm.input_moments import InputMoments


class CommonKeys(nn.Module):
    """Keys times `g (C / (ridge m) + I)^(-1/2)`: what is common is damped, what is particular stays.

    `C` is the second moment of a layer's inputs over ordinary texts and m their median squared length. What an edit
    writes along its strong directions is read by every text: they are the first token, a question mark, the chat
    template. ROME (Meng et al. 2022, eq. 2) takes them out of its one key by `C^-1`; here a key and the query that
    meets it are each multiplied by the root, see `MENDNetwork.aggregated`. The gain g makes up for the lost length of
    an ordinary key, so that an edit rate means what it means without.

    Args:
        d_in: width of the keys.
        rank: the strongest r directions are damped, the others hardly would be; at most the width.
    """

    def __init__(self, d_in: int, rank: int) -> None:
        super().__init__()
        # The root is `I - B^T B`, B being the directions, each scaled by the root of the share that is taken away.
        self.register_buffer("directions", torch.zeros(min(rank, d_in), d_in))
        self.register_buffer("gain", torch.ones(1))
        self.directions: Tensor
        self.gain: Tensor

    def measure(self, moments: InputMoments, ridge: float) -> None:
        """Find the directions.

        Args:
            moments: of the layer's inputs.
            ridge: above 0; smaller damps more.
        """
        strength, directions = torch.linalg.eigh(moments.second.double())
        strength, rank = strength.clamp(min=0), len(self.directions)
        floor = ridge * moments.median_square.double().clamp(min=torch.finfo(torch.float32).tiny)
        kept = (floor / (strength + floor)).sqrt()
        kept[:-rank] = 1.0
        self.directions.copy_(((1 - kept).sqrt() * directions)[:, -rank:].mT)
        self.gain.copy_((strength.sum() / (kept.square() * strength).sum()).sqrt())

    def forward(self, keys: Tensor) -> Tensor:
        """The keys `[E, R, d_in]`, damped."""
        return self.gain * (keys - (keys @ self.directions.mT) @ self.directions)
