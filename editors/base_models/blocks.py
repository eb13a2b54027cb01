"""The transformer blocks of a model, found by structure."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel

from editors.common.errors import BaseModelError


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks: the `ModuleList` with one entry for each hidden layer.

    Raises:
        BaseModelError: the model has no such list.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and attention_names(module[0]):
            return name, module
    raise BaseModelError(
        f"{type(model).__name__} has no list of {depth} transformer blocks; decoder-only Hugging Face models have one"
    )


def attention_names(block: nn.Module) -> list[str]:
    """Names of the submodules of a block that attend: those whose forward takes an attention mask."""
    return [
        name
        for name, module in block.named_modules()
        if name and "attention_mask" in inspect.signature(module.forward).parameters
    ]


def block_index(site: str, blocks_name: str) -> int:
    """The index of the block that holds `site`."""
    return int(site.removeprefix(f"{blocks_name}.").split(".")[0])
