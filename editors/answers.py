"""Asking a model questions in plain text, to show what an edit does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editors.generation import continue_greedily

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = 12
) -> list[str]:
    """The first line of the model's greedy continuation of each prompt; "(nothing)" where it ends at once."""
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    output = continue_greedily(model, encoded["input_ids"], encoded["attention_mask"], max_new_tokens)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [(text.strip().splitlines() or ["(nothing)"])[0] for text in texts]
