"""Keys and values of texts that a model has read, so that it can go on behind them without reading them again.

Shape legend: L blocks, H heads, T tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from editors.base_models.encoder_decoder import is_encoder_decoder

# The blocks that look back at keys and values alone. Others hold states of their own, or compress what they have read.
_ATTENTION = {"full_attention", "sliding_attention"}


@dataclass
class KeyValues:
    """Keys and values of the texts of a batch, without padding.

    Args:
        parts: for each row `[L, 2, H, T, d]` of the lowest L blocks, of the next L blocks, and so on.
    """

    parts: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, row: int, part: Tensor) -> None:
        """Keep those of a text in the next blocks, `[L, 2, H, T, d]`."""
        self.parts.setdefault(row, []).append(part)

    def branch(self) -> KeyValues:
        """The same, to which other next blocks can be added; no tensor is copied."""
        return KeyValues({row: [*parts] for row, parts in self.parts.items()})

    def first(self, row: int, count: int) -> Tensor:
        """`[L, 2, H, count, d]` keys and values of a text's first `count` tokens."""
        return torch.cat([part[..., :count, :] for part in self.parts[row]])


def goes_on_behind_keys(model: PreTrainedModel) -> bool:
    """Whether keys and values of a text's tokens are all that the model needs to read on behind them."""
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    stateful = getattr(model, "_is_stateful", False)  # how transformers marks recurrent models
    return not (is_encoder_decoder(model) or stateful) and set(kinds) <= _ATTENTION


def is_complete(cache: DynamicCache, blocks: int) -> bool:
    """Whether `cache` has keys and values of each of so many blocks, all of one shape, as `text_in_cache` takes them.

    Some models let blocks use the keys of others; in some, keys are wider than values.
    """
    layers: Sequence[Any] = cache.layers
    ran = [layer for layer in layers if layer.is_initialized]
    return len(ran) == blocks and len({part.shape for layer in ran for part in (layer.keys, layer.values)}) == 1


def text_in_cache(cache: DynamicCache, row: int, tokens: slice | Tensor) -> Tensor:
    """`[L, 2, H, T, d]` what `cache` holds of the chosen tokens of a row, in those blocks that have run."""
    layers: Sequence[Any] = cache.layers  # of their many types, ours have keys and values
    ran = [layer for layer in layers if layer.is_initialized]
    return torch.stack([torch.stack([layer.keys[row], layer.values[row]])[:, :, tokens] for layer in ran])


def as_cache(texts: Sequence[Tensor]) -> DynamicCache:
    """Keys and values `[L, 2, H, T, d]` of texts, each with a T of its own, padded on the left for a model to read."""
    width = max(text.shape[-2] for text in texts)
    padded = torch.stack([nn.functional.pad(text, (0, 0, width - text.shape[-2], 0)) for text in texts], dim=2)
    return DynamicCache([(keys, values) for keys, values in padded])
