"""Asking a model questions in plain text, to show what an edit does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editors.generation import continue_greedily
from editors.seq2seq import is_encoder_decoder
from editors.text_encoder import text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 12
) -> list[str]:
    """The first line of the model's greedy continuation of each prompt; "(nothing)" where it ends at once."""
    encoder = text_encoder(tokenizer, encoder_decoder=is_encoder_decoder(model))
    ids, mask = (tensor.to(model.device) for tensor in encoder.prompts(prompts))
    output = continue_greedily(model, ids, mask, max_new_tokens, encoder.answer_prefix)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [(text.strip().splitlines() or ["(nothing)"])[0] for text in texts]
