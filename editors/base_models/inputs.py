"""How a model of either family is called with texts and answers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from editors.base_models.encoder_decoder import EncoderDecoderInputs, is_encoder_decoder
from editors.texts.batches import PaddingSide, TokenBatch, token_positions

# The blocks that look back at keys and values alone. Others hold states of their own, or compress what they have read.
_ATTENTION = {"full_attention", "sliding_attention"}


class DecoderOnlyInputs:
    """How a decoder-only model is called; see `EncoderDecoderInputs` for the other family.

    Attributes:
        has_encoder: whether prompts and answers are read apart.
        prompt_side: where prompts alone are padded, so that the model can go on writing behind all of them.
    """

    has_encoder: ClassVar[bool] = False
    prompt_side: ClassVar[PaddingSide] = "left"

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def arguments(self, tokens: TokenBatch, cache: DynamicCache | None = None) -> dict[str, Any]:
        """Arguments of a forward pass over prompts and answers, which leaves keys and values in `cache`."""
        assert tokens.labels is None, "texts for a decoder-only model are encoded with `DecoderOnlyTexts`"
        return self._arguments(tokens.input_ids, tokens.attention_mask, cache)

    def read(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> None:
        """Run all blocks, but not the head. `mask` also covers the tokens that are in `cache`, on the left."""
        self._model.base_model(**self._arguments(ids, mask, cache))

    def can_continue_from_kv_cache(self) -> bool:
        """Whether keys and values of a text's tokens are all that the model needs to read on behind them."""
        kinds = getattr(self._model.config.get_text_config(decoder=True), "layer_types", None) or ()
        stateful = getattr(self._model, "_is_stateful", False)  # how transformers marks recurrent models
        return not stateful and set(kinds) <= _ATTENTION

    def start(
        self,
        ids: Tensor,
        answer_prefix: Sequence[int],  # noqa: ARG002
        cache: DynamicCache | None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """What `generate` begins its output with, and the arguments it gets for that besides the prompts.

        Args:
            ids: `[B, T]` the prompts.
            answer_prefix: special tokens that come before any answer; there are none.
            cache: keys and values of all tokens but the last.
        """
        return ids, {} if cache is None else {"cache": cache}

    def longest_prompt(self, limit: int, answer: int) -> int:
        """How long a prompt may be, so that the model can write so many tokens; it reads `limit`."""
        return limit - answer

    def _arguments(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
        if cache is not None:
            arguments["cache"] = cache
        if self._takes_positions:
            arguments["position_ids"] = token_positions(mask)[:, -ids.shape[1] :]
        return arguments


def model_inputs(model: PreTrainedModel) -> DecoderOnlyInputs | EncoderDecoderInputs:
    """How `model` is called with a `TokenBatch`.

    Raises:
        BaseModelError: it is an encoder-decoder model that cannot make its decoder's inputs from labels.
    """
    return EncoderDecoderInputs(model) if is_encoder_decoder(model) else DecoderOnlyInputs(model)
