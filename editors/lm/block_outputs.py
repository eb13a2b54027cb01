"""What the blocks of a model give out: found out once, before the first text is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from editors.base_models.families.lookup import as_family
from editors.base_models.quantization import is_packed
from editors.base_models.sites import find_stacks
from editors.base_models.without_values import WithoutValues, skeleton_of
from editors.common.collectives import is_sharded
from editors.lm.kv_cache import kv_shapes

_FOUND: WeakKeyDictionary[nn.ModuleList, BlockOutputs] = WeakKeyDictionary()


@dataclass(frozen=True)
class BlockOutputs:
    """What the blocks of the stack that reads the prompt give out.

    Args:
        are_tuples: whether they return more than hidden states.
        kv_shapes: for each block that of the keys and that of the values which it adds to a KV cache for two tokens;
            `None` where it adds none, or where they are not all that the model needs to read on.
    """

    are_tuples: bool
    kv_shapes: tuple[tuple[torch.Size, torch.Size] | None, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> BlockOutputs:
        """Those of `model`, which reads two tokens the first time that it is asked for."""
        blocks = next(iter(find_stacks(model).values()))
        if blocks not in _FOUND:
            _FOUND[blocks] = _of_two_tokens(model)
        return _FOUND[blocks]

    def fill_kv_cache(self, first: int = 0, end: int | None = None) -> bool:
        """Whether blocks `first` to `end` leave all that is needed to read on in a KV cache, in tensors of one shape.

        Some models let blocks use the keys of others; in some, keys are wider than values.
        """
        parts = self.kv_shapes[first:end]
        return None not in parts and len({shape for part in parts if part is not None for shape in part}) <= 1


@torch.no_grad()
def _of_two_tokens(model: PreTrainedModel) -> BlockOutputs:
    """Run the stack once.

    Weights that are sharded cannot be read before the strategy has set the model up, packed ones are slow to read on
    the CPU, where models are loaded, and `plan` has none. Then a model of the same class runs without values: what its
    blocks return hangs on its code and its configuration only.
    """
    if any(p.is_meta or is_sharded(p) or is_packed(p) for p in model.parameters()):
        model = skeleton_of(model)
    blocks = next(iter(find_stacks(model).values()))
    tuples: list[bool] = []
    handle = blocks[0].register_forward_hook(lambda _, __, output: tuples.append(isinstance(output, tuple)))
    family = as_family(model)
    cache = DynamicCache() if family.can_continue_from_kv_cache() else None
    ids = torch.zeros(1, 2, dtype=torch.long, device="cpu" if model.device.type == "meta" else model.device)
    try:
        with WithoutValues():
            family.read(ids, torch.ones_like(ids), cache)
    finally:
        handle.remove()
    return BlockOutputs(tuples[0], kv_shapes(cache, len(blocks)))


@contextmanager
def states_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """Inside this context every forward pass of `block` adds its hidden states `[B, T, d]` to the list."""
    states: list[Tensor] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(record)
    try:
        yield states
    finally:
        handle.remove()
