"""Forward passes that answer with the logits of a second model that has the base model's vocabulary.

Shape legend: B texts, R of them in scope, T tokens, N answer tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from editors.methods.serac.counterfactual.context import COUNTERFACTUAL_LIMIT, check_length, prepend
from editors.methods.serac.counterfactual.interface import fit_width, mix
from editors.methods.serac.passes import Application, Passes, refuse_beams
from editors.texts.batches import token_positions

_NO_BEAMS = (
    "beam search reorders the base model's cache but not the counterfactual model's; use greedy decoding or sampling, "
    "or serac.counterfactual adapter"
)


class LogitPasses(Passes):
    """The second model reads the texts in scope after their contexts, with a KV cache of its own.

    Args:
        application: what is applied, and to what.
        second: the second model.
    """

    def __init__(self, application: Application, second: PreTrainedModel) -> None:
        super().__init__(application)
        self.second: Any = second
        accepted = inspect.signature(second.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.cache_name = "cache" if "cache" in accepted else "past_key_values"  # architectures differ
        self.cache: Any = None
        # Of the prompts: their width, and the mask of those in scope with their contexts.
        self.prompt_width = 0
        self.prompt_mask = torch.zeros(0, 0)
        # Of the pass: what the second model reads.
        self.ids, self.mask = torch.zeros(0, 0), torch.zeros(0, 0)

    def read(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Put the contexts before the prompts in scope, for the second model; the base model is called as ever."""
        contexts = self.texts.contexts([request for request in self.requests if request is not None])
        rows, self.prompt_width = self.chosen.to(ids.device), ids.shape[1]
        self.ids, self.mask = prepend(ids[rows], mask[rows], contexts, self.texts.special_ids)
        self.prompt_mask = self.mask
        check_length(self.mask, self.second, f"{COUNTERFACTUAL_LIMIT} is")
        self.cache = DynamicCache(config=self.second.config) if self.tokens is None else None
        if self.callers_cache is not None:
            refuse_beams(self.callers_cache, _NO_BEAMS)
        return {}

    def go_on(self, ids: Tensor, mask: Tensor | None, past: int) -> dict[str, Any]:
        """Give the second model the new tokens of texts in scope; the base model is called as ever."""
        rows = self.chosen.to(ids.device)
        self.ids = ids[rows]
        since = self.ids.new_ones(len(self.ids), past + self.width - self.prompt_width)
        since = since if mask is None else mask[rows][:, self.prompt_width :]
        self.mask = torch.cat([self.prompt_mask, since], dim=1)
        return {}

    def answer(self, logits: Tensor) -> Tensor:
        """The logits of texts in scope are the second model's, or mixed with them."""
        own = self._own_logits(logits)
        if self.tokens is None:  # [B, T, V]
            chosen, log_score = self.chosen.to(logits.device), self.log_score[self.chosen].unsqueeze(1)
            own = own[:, -logits.shape[1] :]
            base = logits[chosen]
        else:  # [1, N, V], at the answer positions
            chosen = self.chosen.to(logits.device)[self.tokens.rows].unsqueeze(0)
            rows, log_score = self.tokens.rows[chosen[0]], self.log_score[self.tokens.rows[chosen[0]]]
            order = self.chosen.long().cumsum(dim=0).to(rows.device) - 1  # place of each text among those in scope
            own = own[order[rows], self.tokens.positions[chosen[0]] % self.width]
            base = logits[chosen]
        if self.soft:
            own = mix(base, own, log_score.to(own.device).expand(own.shape[:-1]))
        answered = logits.clone()
        answered[chosen] = own.to(logits.dtype)
        return answered

    def _own_logits(self, logits: Tensor) -> Tensor:
        """`[R, T, V]` of the second model, in the caller's columns."""
        arguments: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.takes_positions:
            arguments["position_ids"] = token_positions(self.mask)[:, -self.ids.shape[1] :]
        if self.cache is not None:
            arguments[self.cache_name] = self.cache
        output = self.second(**arguments, use_cache=self.cache is not None)
        return fit_width(output.logits[:, -self.width :], logits.shape[-1])

    def close(self) -> None:
        """Drop the second model's cache."""
        self.cache = None
