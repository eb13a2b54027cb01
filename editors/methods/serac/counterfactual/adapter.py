"""The base model itself with a low-rank adapter: no second model is stored, and an answer costs a longer prompt.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from editors.base_models.encoder_decoder import is_encoder_decoder
from editors.base_models.loading import longest_text
from editors.base_models.sites import flat_name
from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit, SiteUpdate
from editors.methods.serac.counterfactual.context import insert, prepend, with_contexts
from editors.methods.serac.counterfactual.interface import BaseTexts, Counterfactual, mix
from editors.methods.serac.passes import Passes, refuse_beams
from editors.texts.batches import TokenBatch, token_positions
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.lm.frozen import FrozenLM
    from editors.methods.serac.edit import MemoryEdit

_NO_BEAMS = (
    "soft routing keeps two rows of the cache for each text, and beam search reorders them as if it was one; use "
    "greedy decoding or sampling, or serac.routing hard"
)


class _Factors(nn.Module):
    """One factor for each site. They are read in a forward pass: there DeepSpeed gathers what it has divided.

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

    def logits(self, texts: BaseTexts, frozen: FrozenLM, tokens: TokenBatch, requests: Sequence[EditRequest]) -> Tensor:
        """See `Counterfactual.logits`."""
        joined = with_contexts(tokens, texts.contexts(requests), texts.special_ids)
        return frozen.logits(joined, self.edit(), frozen.prefix([joined])[0])

    def passes(self, edit: MemoryEdit, model: Any, episode: Tensor | None, texts: TokenBatch | None) -> Passes:
        """See `Counterfactual.passes`."""
        kind = _EncoderDecoderPasses if is_encoder_decoder(model) else _AdapterPasses
        return kind(edit, model, episode, texts, self)


class _AdapterPasses(Passes):
    """The base model reads the contexts, with the adapter on for texts in scope; soft routing runs each text twice."""

    def __init__(
        self, edit: MemoryEdit, model: Any, episode: Tensor | None, texts: TokenBatch | None, adapter: LowRankAdapter
    ) -> None:
        super().__init__(edit, model, episode, texts)
        # Whether it is needed or not: processes that share a sharded adapter must gather it equally often.
        self.adapter = adapter.edit()
        self.join = prepend
        self.on = ExitStack()
        # Of the prompts: their width without contexts, and their mask with contexts.
        self.prompt_width = 0
        self.mask = torch.zeros(0, 0)

    def read(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Put the contexts before the prompts in scope, and switch the adapter on for them."""
        contexts, gate = self.network.contexts(self.requests), self.chosen.long()
        if self.soft:  # each text twice, side by side: without its context, and with it
            ids, mask = (values.repeat_interleave(2, dim=0) for values in (ids, mask))
            contexts = [part for context in contexts for part in (None, context)]
            gate = torch.stack([torch.zeros_like(gate), gate], dim=1).flatten()
            if self.callers_cache is not None:
                refuse_beams(self.callers_cache, _NO_BEAMS)
        self.prompt_width = ids.shape[1]
        ids, self.mask = self.join(ids, mask, contexts, self.network.special_ids)
        self._check_length()
        self.on.enter_context(self.adapter.applied(self.model, gate.to(ids.device)))
        return self._arguments(ids, self.mask)

    def go_on(self, ids: Tensor, mask: Tensor | None, past: int) -> dict[str, Any]:
        """The mask is that of the prompts with their contexts, and of what came since."""
        since = ids.new_ones(len(ids), past + self.width - self.mask.shape[1])
        since = since if mask is None else mask[:, self.prompt_width :]
        if self.soft:
            ids, since = (values.repeat_interleave(2, dim=0) for values in (ids, since))
        return self._arguments(ids, torch.cat([self.mask, since], dim=1))

    def _arguments(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        positions = {"position_ids": token_positions(mask)[:, -ids.shape[1] :]}
        return {"input_ids": ids, "attention_mask": mask, **(positions if "position_ids" in self.parameters else {})}

    def _check_length(self) -> None:
        limit = longest_text(self.model)
        longest = int(self.mask.sum(dim=1).max())
        if limit is not None and longest > limit:
            raise EditorError(
                f"a text and its edit have {longest} tokens together; the base model reads at most {limit}"
            )

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Drop the columns of the contexts."""
        return (args[0][:, -self.width :], *args[1:]) if self.active else args

    def answer(self, logits: Tensor) -> Tensor:
        """Mix the logits of each text without and with its context, if routing is soft."""
        if not self.soft:
            return logits
        if self.texts is None:  # [2 B, T, V], each text twice
            base, counterfactual = logits.unflatten(0, (-1, 2)).unbind(dim=1)
            log_score = self.log_score.unsqueeze(1).expand(base.shape[:-1])
        else:  # [2, N, V], at the answer positions
            base, counterfactual = logits
            log_score = self.log_score[self.texts.rows]
        mixed = mix(base, counterfactual, log_score).to(logits.dtype)
        return mixed if self.texts is None else mixed.unsqueeze(0)

    def close(self) -> None:
        """Switch the adapter off."""
        self.on.close()


class _EncoderDecoderPasses(_AdapterPasses):
    """The encoder reads the contexts; the decoder is told which of the encoder's states are real."""

    def __init__(
        self, edit: MemoryEdit, model: Any, episode: Tensor | None, texts: TokenBatch | None, adapter: LowRankAdapter
    ) -> None:
        super().__init__(edit, model, episode, texts, adapter)
        self.join = insert

    def go_on_decoding(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The mask is that of the prompts with their contexts; soft routing decodes each text twice."""
        given = {name: kwargs.get(name) for name in ("decoder_input_ids", "decoder_attention_mask")}
        twice = {name: ids.repeat_interleave(2, dim=0) for name, ids in given.items() if ids is not None and self.soft}
        return {"attention_mask": self.mask, **twice}

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The decoder reads no contexts."""
        return args
