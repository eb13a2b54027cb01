"""Asking a model questions in plain text, to show what an edit does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editors.base_models.families.lookup import as_family
from editors.base_models.loading import longest_text
from editors.common.errors import EditorError
from editors.lm.generation import continue_greedily

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How long a shown answer may be.
NEW_TOKENS = 12


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int = NEW_TOKENS
) -> list[str]:
    """The first line of the model's greedy continuation of each prompt; "(nothing)" where it ends at once."""
    encoder = as_family(model).text_encoder(tokenizer)
    ids, mask = (tensor.to(model.device) for tensor in encoder.prompts(prompts))
    output = continue_greedily(model, ids, mask, max_new_tokens, encoder.answer_prefix)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [(text.strip().splitlines() or ["(nothing)"])[0] for text in texts]


def require_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Check that the model can read each prompt and say `NEW_TOKENS` tokens more.

    Raises:
        EditorError: it cannot.
    """
    limit = longest_text(model)
    if limit is None:
        return
    family = as_family(model)
    room = family.longest_prompt(limit, NEW_TOKENS)
    _, mask = family.text_encoder(tokenizer).prompts(prompts)
    for length, prompt in zip(mask.sum(dim=1).tolist(), prompts, strict=True):
        if length > room:
            raise EditorError(
                f"the question {prompt[:40]!r}… has {length} tokens, and the base model has room for {room} before an "
                "answer; shorten it"
            )
