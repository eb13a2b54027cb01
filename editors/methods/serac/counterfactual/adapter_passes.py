"""Forward passes of the base model that answer with the adapter.

Shape legend: B texts, T tokens, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from editors.edits.low_rank import LowRankEdit
from editors.methods.serac.counterfactual.context import check_length, insert, prepend
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.passes import Application, Passes, refuse_beams
from editors.texts.batches import token_positions

_NO_BEAMS = (
    "soft routing keeps two rows of the cache for each text, and beam search reorders them as if it was one; use "
    "greedy decoding or sampling, or serac.routing hard"
)


class AdapterPasses(Passes):
    """The base model reads the contexts, with the adapter on for texts in scope; soft routing runs each text twice.

    Args:
        application: what is applied, and to what.
        adapter: as an edit of two episodes, which is on in episode 1 only.
    """

    def __init__(self, application: Application, adapter: LowRankEdit) -> None:
        super().__init__(application)
        self.adapter = adapter
        self.join = prepend
        self.on = ExitStack()
        # Of the prompts: their width without contexts, and their mask with contexts.
        self.prompt_width = 0
        self.mask = torch.zeros(0, 0)

    def read(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Put the contexts before the prompts in scope, and switch the adapter on for them."""
        contexts, gate = self.texts.contexts(self.requests), self.chosen.long()
        if self.soft:  # each text twice, side by side: without its context, and with it
            ids, mask = (values.repeat_interleave(2, dim=0) for values in (ids, mask))
            contexts = [part for context in contexts for part in (None, context)]
            gate = torch.stack([torch.zeros_like(gate), gate], dim=1).flatten()
            if self.callers_cache is not None:
                refuse_beams(self.callers_cache, _NO_BEAMS)
        self.prompt_width = ids.shape[1]
        ids, self.mask = self.join(ids, mask, contexts, self.texts.special_ids)
        check_length(self.mask, self.model, "the base model reads at most")
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

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Drop the columns of the contexts."""
        return (args[0][:, -self.width :], *args[1:]) if self.active else args

    def answer(self, logits: Tensor) -> Tensor:
        """Mix the logits of each text without and with its context, if routing is soft."""
        if not self.soft:
            return logits
        if self.tokens is None:  # [2 B, T, V], each text twice
            base, counterfactual = logits.unflatten(0, (-1, 2)).unbind(dim=1)
            log_score = self.log_score.unsqueeze(1).expand(base.shape[:-1])
        else:  # [2, N, V], at the answer positions
            base, counterfactual = logits
            log_score = self.log_score[self.tokens.rows]
        mixed = mix(base, counterfactual, log_score).to(logits.dtype)
        return mixed if self.tokens is None else mixed.unsqueeze(0)

    def close(self) -> None:
        """Switch the adapter off."""
        self.on.close()


class EncoderDecoderPasses(AdapterPasses):
    """The encoder reads the contexts; the decoder is told which of the encoder's states are real."""

    def __init__(self, application: Application, adapter: LowRankEdit) -> None:
        super().__init__(application, adapter)
        self.join = insert

    def go_on_decoding(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The mask is that of the prompts with their contexts; soft routing decodes each text twice."""
        given = {name: kwargs.get(name) for name in ("decoder_input_ids", "decoder_attention_mask")}
        twice = {name: ids.repeat_interleave(2, dim=0) for name, ids in given.items() if ids is not None and self.soft}
        return {"attention_mask": self.mask, **twice}

    def before_head(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The decoder reads no contexts."""
        return args
