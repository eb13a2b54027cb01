"""How a model of either family is called with texts and answers."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from editors.base_models.encoder_decoder import EncoderDecoderInputs, is_encoder_decoder
from editors.texts.batches import TokenBatch, token_positions


class DecoderOnlyInputs:
    """How a decoder-only model is called; see `EncoderDecoderInputs` for the other family."""

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
