"""Models without values, on torch's "meta" device: their shapes and types show what a pass does and takes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # what torch's own memory tracker builds on
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel
from transformers.modeling_utils import set_zero3_state

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._unsafe_index.Tensor)  # noqa: SLF001 - an operator's name
# Operations that read the values of their second tensor, which is on the CPU for a GPU's tensors too.
_LENGTHS_ON_CPU = (_ATEN._pack_padded_sequence.default,)  # noqa: SLF001


def skeleton_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration without values; of `model` nothing is read.

    It is in bfloat16, for which alone the meta device has the products of a mixture of experts.
    """
    # Under ZeRO-3, models inside the model would be sharded while they are made.
    with torch.device("meta"), set_zero3_state():
        skeleton: nn.Module = type(model)(deepcopy(model.config))
    return cast(PreTrainedModel, skeleton.to(torch.bfloat16).eval())


class WithoutValues(TorchDispatchMode):
    """Inside this context a model on the meta device runs; token ids, masks and positions are ordinary tensors.

    So all decisions that hang on those are taken as in a real run. Where a computation asks for a value that there is
    not, it gets the one with which it needs the most memory: a comparison is true (so every token carries a gradient),
    a number is zero.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation: on the CPU where all values are known, otherwise on meta."""
        kwargs = kwargs or {}
        if not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            result = func(*args, **kwargs)
        elif func is _ATEN._local_scalar_dense.default:  # noqa: SLF001
            return 0
        elif func is _ATEN._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":  # noqa: SLF001
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif func in _LENGTHS_ON_CPU:
            result = func(*args, **kwargs)
        else:
            if func in _INDEXING:
                args = (args[0], _positions(args[1]), *args[2:])
            args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
            result = func(*args, **kwargs)
        return tree_map_only(Tensor, self._handed_on, result)

    def _handed_on(self, tensor: Tensor) -> Tensor:
        """A result as the computation gets it."""
        if tensor.is_meta and tensor.dtype == torch.bool:
            return torch.ones(tensor.shape, dtype=torch.bool)
        if tensor.is_meta:
            self.made(tensor)
        return tensor

    def made(self, tensor: Tensor) -> None:
        """A tensor without values has come out of an operation; a subclass may take note."""


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to("meta")


def _positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices in which masks, whose values decide about shapes, are replaced by the positions they choose."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found
