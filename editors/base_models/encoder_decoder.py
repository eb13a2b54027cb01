"""What is different about encoder-decoder models: the prompt goes to the encoder, the answer to the decoder.

Shape legend: B texts, T prompt tokens, A answer tokens (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from editors.common.errors import BaseModelError
from editors.texts.batches import IGNORED, PaddingSide, TokenBatch


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether `model` has an encoder that reads prompts and a decoder that writes answers (T5, BART)."""
    return bool(model.config.is_encoder_decoder)


class EncoderDecoderInputs:
    """How an encoder-decoder model is called; methods and attributes are those of `DecoderOnlyInputs`.

    Prompts are padded on the right, because an encoder may count positions from the left edge (BART's does).

    Args:
        model: an encoder-decoder model.

    Raises:
        BaseModelError: it cannot make its decoder's inputs from labels.
    """

    has_encoder: ClassVar[bool] = True
    prompt_side: ClassVar[PaddingSide] = "right"

    def __init__(self, model: PreTrainedModel) -> None:
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise BaseModelError(
                f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels, so what its decoder reads is "
                "unknown; of the encoder-decoder models, those like T5 and BART can be edited"
            )
        self._model = model
        self._encoder = model.get_encoder()

    def arguments(self, tokens: TokenBatch, _: DynamicCache | None = None) -> dict[str, Any]:
        """Arguments of a forward pass; its logits at `[b, i]` predict `tokens.labels[b, i]`. Keys are not kept."""
        labels = tokens.labels
        assert labels is not None, "texts for an encoder-decoder model are encoded with `EncoderDecoderTexts`"
        return {
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "decoder_input_ids": decoder_ids(self._model, labels),
            "decoder_attention_mask": (labels != IGNORED).long(),
            "use_cache": False,
        }

    def read(self, ids: Tensor, mask: Tensor, _: DynamicCache | None = None) -> None:
        """Run the encoder, which has no keys and values to keep."""
        self._encoder(input_ids=ids, attention_mask=mask)

    def can_continue_from_kv_cache(self) -> bool:
        """No: what is cached belongs to the decoder."""
        return False

    def start(self, ids: Tensor, answer_prefix: Sequence[int], _: DynamicCache | None) -> tuple[Tensor, dict[str, Any]]:
        """The decoder begins with its start token, and with special tokens that come before any answer."""
        start = decoder_start(self._model, len(ids), answer_prefix)
        return start, {"decoder_input_ids": start}

    def longest_prompt(self, limit: int, _: int) -> int:
        """The decoder has room of its own."""
        return limit


def decoder_ids(model: Any, labels: Tensor) -> Tensor:
    """`[B, A]` what the decoder reads to predict `labels` `[B, A]`: the model's own shift, with its own start token."""
    ids: Tensor = model.prepare_decoder_input_ids_from_labels(labels)
    return ids


def decoder_start(model: PreTrainedModel, count: int, prefix: Sequence[int]) -> Tensor:
    """`[B, 1 + prefix]` what the decoder has read before it writes an answer: its start token and special tokens.

    Args:
        model: an encoder-decoder model.
        count: B.
        prefix: the special tokens that come before every answer (BART's `<s>`).
    """
    labels = torch.tensor([[*prefix, 0]], device=model.device)
    return decoder_ids(model, labels).expand(count, -1)


def answer_prefix(tokens: TokenBatch) -> list[int]:
    """The special tokens that come before every answer of a batch; none for a decoder-only model."""
    if tokens.labels is None or not tokens.num_texts:
        return []
    row = tokens.rows[0]
    return tokens.labels[row, : tokens.positions[0] - row * tokens.labels.shape[1]].tolist()
