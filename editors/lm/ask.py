"""Asking a model questions in plain text, to show what an edit does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editors.base_models.families.lookup import as_family
from editors.base_models.loading import longest_text
from editors.common.errors import EditorError
from editors.lm.generation import continue_greedily
from editors.texts.forms import Form, in_form

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How long a shown answer may be.
NEW_TOKENS = 12


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = NEW_TOKENS,
    form: Form = "bare",
) -> list[str]:
    """The first line of the model's greedy continuation of each prompt; "(nothing)" where it ends at once.

    Args:
        model: the model, with an edit applied or without.
        tokenizer: its tokenizer.
        prompts: questions in plain text.
        max_new_tokens: longest answer.
        form: how the model is asked.

    Raises:
        EditorError: the form is chat, and the model has no chat template.
    """
    encoder = as_family(model).text_encoder(tokenizer)
    texts = [in_form(tokenizer, prompt, form) for prompt in prompts]
    ids, mask = (tensor.to(model.device) for tensor in encoder.prompts(texts))
    output = continue_greedily(model, ids, mask, max_new_tokens, encoder.answer_prefix)
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [(answer.strip().splitlines() or ["(nothing)"])[0] for answer in answers]


def require_room(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], form: Form = "bare"
) -> None:
    """Check that the model can read each prompt in `form` and say `NEW_TOKENS` tokens more.

    Raises:
        EditorError: it cannot, or the form is chat, and the model has no chat template.
    """
    limit = longest_text(model)
    if limit is None:
        return
    family = as_family(model)
    room = family.longest_prompt(limit, NEW_TOKENS)
    _, mask = family.text_encoder(tokenizer).prompts([in_form(tokenizer, prompt, form) for prompt in prompts])
    for length, prompt in zip(mask.sum(dim=1).tolist(), prompts, strict=True):
        if length > room:
            raise EditorError(
                f"the question {prompt[:40]!r}… has {length} tokens, and the base model has room for {room} before an "
                "answer; shorten it"
            )
