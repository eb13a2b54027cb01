"""Encoder-decoder models: the prompt goes to the encoder, the answer to the decoder.

Shape legend: B texts, T prompt tokens, A answer tokens (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, PreTrainedModel

from editors.base_models.blocks import attention_names
from editors.base_models.families.family import Family
from editors.common.errors import BaseModelError
from editors.texts.batches import IGNORED, TokenBatch
from editors.texts.encoders import EncoderDecoderTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncoderDecoder(Family):
    """An encoder-decoder model (T5, BART); see `Family`.

    Prompts are padded on the right, because an encoder may count positions from the left edge (BART's does).

    Raises:
        BaseModelError: the model cannot make its decoder's inputs from labels.
    """

    has_encoder = True
    prompt_side = EncoderDecoderTexts.prompt_side
    auto_class = AutoModelForSeq2SeqLM
    adapter_task = "SEQ_2_SEQ_LM"

    def __init__(self, model: PreTrainedModel) -> None:
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise BaseModelError(
                f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels, so what its decoder reads is "
                "unknown; of the encoder-decoder models, those like T5 and BART can be edited"
            )
        super().__init__(model)
        self._encoder = model.get_encoder()

    @staticmethod
    def text_encoder(
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_answers: bool = False,  # noqa: ARG004 - they always end
    ) -> EncoderDecoderTexts:
        """Prompt and answer apart."""
        return EncoderDecoderTexts(tokenizer)

    @staticmethod
    def stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
        """Encoder and decoder."""
        found = {}
        for part in (model.get_encoder(), model.get_decoder()):
            lists = [m for m in part.modules() if isinstance(m, nn.ModuleList) and len(m) and attention_names(m[0])]
            if not lists:
                raise BaseModelError(f"{type(part).__name__} has no list of transformer blocks")
            found.update({name: blocks for name, blocks in model.named_modules() if blocks is lists[0]})
        return found

    @staticmethod
    def longest_prompt(limit: int, answer: int) -> int:  # noqa: ARG004
        """The decoder has room of its own."""
        return limit

    def arguments(
        self,
        tokens: TokenBatch,
        cache: DynamicCache | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
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

    def read(self, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> None:  # noqa: ARG002
        """Run the encoder, which has no keys and values to keep."""
        self._encoder(input_ids=ids, attention_mask=mask)

    def can_continue_from_kv_cache(self) -> bool:
        """No: what is cached belongs to the decoder."""
        return False

    def start(
        self,
        ids: Tensor,
        answer_prefix: Sequence[int],
        cache: DynamicCache | None,  # noqa: ARG002
    ) -> tuple[Tensor, dict[str, Any]]:
        """The decoder begins with its start token, and with special tokens that come before any answer."""
        start = decoder_start(self._model, len(ids), answer_prefix)
        return start, {"decoder_input_ids": start}


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
