"""KV caches: keys and values of texts that a model has read, so that it can go on without reading them again.

Shape legend: L blocks, H heads, T tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass
class KVCache:
    """Keys and values of the texts of a batch, without padding.

    Args:
        parts: for each row `[L, 2, H, T, d]` of the lowest L blocks, of the next L blocks, and so on.
    """

    parts: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, row: int, part: Tensor) -> None:
        """Keep those of a text in the next blocks, `[L, 2, H, T, d]`."""
        self.parts.setdefault(row, []).append(part)

    def branch(self) -> KVCache:
        """The same, to which other next blocks can be added; no tensor is copied."""
        return KVCache({row: [*parts] for row, parts in self.parts.items()})

    def first(self, row: int, count: int) -> Tensor:
        """`[L, 2, H, count, d]` keys and values of a text's first `count` tokens."""
        return torch.cat([part[..., :count, :] for part in self.parts[row]])


def kv_shapes(cache: DynamicCache | None, blocks: int) -> tuple[tuple[torch.Size, torch.Size] | None, ...]:
    """The shapes of the keys and of the values that `cache` holds of each block; `None` where it has none."""
    layers: Sequence[Any] = [] if cache is None else cache.layers
    found = [(layer.keys.shape, layer.values.shape) if layer.is_initialized else None for layer in layers]
    return (*found[:blocks], *[None] * (blocks - len(found)))


def text_in_cache(cache: DynamicCache, row: int, tokens: slice | Tensor) -> Tensor:
    """`[L, 2, H, T, d]` what `cache` holds of the chosen tokens of a row, in those blocks that have run."""
    layers: Sequence[Any] = cache.layers  # of their many types, ours have keys and values
    ran = [layer for layer in layers if layer.is_initialized]
    return torch.stack([torch.stack([layer.keys[row], layer.values[row]])[:, :, tokens] for layer in ran])


def as_dynamic_cache(texts: Sequence[Tensor]) -> DynamicCache:
    """Keys and values `[L, 2, H, T, d]` of texts, each with a T of its own, padded on the left for a model to read."""
    width = max(text.shape[-2] for text in texts)
    padded = torch.stack([nn.functional.pad(text, (0, 0, width - text.shape[-2], 0)) for text in texts], dim=2)
    return DynamicCache([(keys, values) for keys, values in padded])
