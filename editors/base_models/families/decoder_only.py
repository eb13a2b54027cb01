"""Decoder-only models: prompt and answer are one text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from editors.base_models.blocks import find_blocks
from editors.base_models.families.family import Family
from editors.texts.batches import TokenBatch, token_positions
from editors.texts.encoders import DecoderOnlyTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The blocks that look back at keys and values alone. Others hold states of their own, or compress what they have read.
_ATTENTION = {"full_attention", "sliding_attention"}


class DecoderOnly(Family):
    """A decoder-only model (GPT-2, Llama); see `Family`."""

    has_encoder = False
    prompt_side = DecoderOnlyTexts.prompt_side
    auto_class = AutoModelForCausalLM
    adapter_task = "CAUSAL_LM"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @staticmethod
    def text_encoder(tokenizer: PreTrainedTokenizerBase, *, end_answers: bool = False) -> DecoderOnlyTexts:
        """Prompt and answer as one text."""
        return DecoderOnlyTexts(tokenizer, end_answers=end_answers)

    @staticmethod
    def stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        """The only one."""
        return dict([find_blocks(model)])

    @staticmethod
    def longest_prompt(limit: int, answer: int) -> int:
        """The answer needs room too."""
        return limit - answer

    def arguments(self, tokens: TokenBatch, cache: DynamicCache | None = None) -> dict[str, Any]:
        """Arguments of a forward pass over prompts and answers, which leaves keys and values in `cache`."""
        assert tokens.labels is None, "texts for a decoder-only model are encoded with `DecoderOnlyTexts`"
        return self._arguments(tokens.input_ids, tokens.attention_mask, cache)

    def read(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> None:
        """Run all blocks, but not the head."""
        self._model.base_model(**self._arguments(ids, mask, cache))

    def can_continue_from_kv_cache(self) -> bool:
        """Whether all its blocks attend, and hold no state of another kind."""
        kinds = getattr(self._model.config.get_text_config(decoder=True), "layer_types", None) or ()
        stateful = getattr(self._model, "_is_stateful", False)  # how transformers marks recurrent models
        return not stateful and set(kinds) <= _ATTENTION

    def start(
        self,
        ids: Tensor,
        answer_prefix: Sequence[int],  # noqa: ARG002
        cache: DynamicCache | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The output begins with the prompts; no special token comes before an answer."""
        return ids, {} if cache is None else {"cache": cache}

    def _arguments(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
        if cache is not None:
            arguments["cache"] = cache
        if self._takes_positions:
            arguments["position_ids"] = token_positions(mask)[:, -ids.shape[1] :]
        return arguments
