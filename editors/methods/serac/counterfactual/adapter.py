"""The base model itself with a low-rank adapter: no second model is stored, and an answer costs a longer prompt.

Shape legend: N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from editors.base_models.families.lookup import family_of
from editors.base_models.sites import flat_name
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.methods.serac.counterfactual.adapter_passes import AdapterPasses, EncoderDecoderPasses
from editors.methods.serac.counterfactual.context import with_contexts
from editors.methods.serac.counterfactual.interface import Counterfactual
from editors.methods.serac.passes import Application, Passes
from editors.methods.serac.texts import BaseTexts
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.lm.frozen import FrozenLM


class _Factors(nn.Module):
    """One factor for each site. They are read in a forward pass: there DeepSpeed gathers what it has sharded.

    Args:
        factors: `[r, d]` for each key, which holds no dot.
    """

    def __init__(self, factors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for key, factor in factors.items():
            self.register_parameter(key, nn.Parameter(factor))

    def __getitem__(self, key: str) -> nn.Parameter:
        return self.get_parameter(key)

    def forward(self) -> tuple[Tensor, ...]:
        """For each factor `[2, r, d]`: nothing, and the factor."""
        return tuple(torch.stack([torch.zeros_like(factor), factor]) for factor in self.parameters())


class LowRankAdapter(Counterfactual):
    """`y + (x A^T) B` at every site (LoRA, Hu et al. 2021, section 4.1), kept as the branch of a `LowRankEdit`.

    Args:
        site_widths: `(d_in, d_out)` of each site.
        rank: r.
    """

    def __init__(self, site_widths: Mapping[str, tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.sites = list(site_widths)
        # B starts at zero, so that the counterfactual model starts as the base model.
        self.down = _Factors(
            {flat_name(site): torch.randn(rank, d_in) * d_in**-0.5 for site, (d_in, _) in site_widths.items()}
        )
        self.up = _Factors({flat_name(site): torch.zeros(rank, d_out) for site, (_, d_out) in site_widths.items()})

    def edit(self) -> LowRankEdit:
        """An edit of two episodes: in episode 0 nothing is changed, in episode 1 the adapter is on."""
        factors = zip(self.sites, self.down(), self.up(), strict=True)
        return LowRankEdit({site: SiteUpdate(down, up) for site, down, up in factors})

    def logits(self, texts: BaseTexts, lm: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]) -> Tensor:
        """The base model's own logits after the contexts, with the adapter on; its frozen blocks are run apart."""
        joined = with_contexts(tokens, texts.contexts(requests), texts.special_ids)
        return lm.logits(joined, self.edit(), lm.prefix([joined])[0])

    def passes(self, application: Application) -> Passes:
        """Passes of the base model that read the contexts themselves, the encoder's where there is one."""
        kind = EncoderDecoderPasses if family_of(application.model.config).has_encoder else AdapterPasses
        # Whether it is needed or not: processes that share a sharded adapter must gather it equally often.
        return kind(application, self.edit())
