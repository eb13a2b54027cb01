"""What an artifact keeps of a model that SERAC is built with: its configuration and tokenizer, beside the tensors.

So an artifact loads on a machine that has never seen that model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from editors.base_models.reading import read_tokenizer
from editors.common.plain import read_json

_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"


def keep_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a model's configuration and its tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def kept_model(folder: Path, build: Callable[..., Any]) -> tuple[Any, Any]:
    """The model of what `keep_model` wrote, in float32 with random weights, and its tokenizer.

    No code is taken from the folder: it may be a stranger's.

    Args:
        folder: written by `keep_model`.
        build: makes the model of its configuration; a `from_config` of transformers.

    Raises:
        OSError, ValueError: the folder is missing or damaged.
    """
    read_json(folder / _CONFIG)  # of a sensible size, and not nested without end
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not (folder / _TOKENIZER_CONFIG).is_file():
        raise OSError(f"there is no {_TOKENIZER_CONFIG}, which says what its special tokens are; copy the whole folder")
    tokenizer = read_tokenizer(str(folder), trust_remote_code=False, local_files_only=True)
    model = build(config, dtype=torch.float32)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model, tokenizer
