"""Ordinary texts of the data that an editor is trained on, for what is computed once for a base model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from editors.texts.forms import chat_prompt, has_chat_template


def ordinary_texts(trainer: Any, most: int) -> list[str]:
    """Prompts and locality texts of the training split, spread evenly: what is scored must not be seen before.

    Args:
        trainer: Lightning's.
        most: how many texts at most.

    Returns:
        None where the data module does not show its records.
    """
    records = getattr(getattr(trainer, "datamodule", None), "records", {}).get("train", [])
    texts = [text for record in records for text in (record.prompt, *(probe.prompt for probe in record.locality))]
    if len(texts) <= most:
        return texts
    return [texts[number * len(texts) // most] for number in range(most)]


def some_in_chat_form(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every other text in the model's chat template, where there is one."""
    if not has_chat_template(tokenizer):
        return texts
    return [chat_prompt(tokenizer, text) if number % 2 else text for number, text in enumerate(texts)]
