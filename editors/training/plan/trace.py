"""Runs a computation without its values and follows the memory it takes.

Weights and all that is computed from them are on torch's "meta" device: shapes and types, no values. Token ids, masks
and positions are ordinary tensors on the CPU, so that all decisions that hang on them are taken as in a real run.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # what torch's own memory tracker builds on
from torch.utils._pytree import tree_leaves, tree_map_only

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._unsafe_index.Tensor)  # noqa: SLF001 - an operator's name
# Operations that read the values of their second tensor, which is on the CPU for a GPU's tensors too.
_LENGTHS_ON_CPU = (_ATEN._pack_padded_sequence.default,)  # noqa: SLF001


class MemoryTrace(TorchDispatchMode):
    """Inside this context, tensors on the meta device are counted while they live.

    Where a computation asks for a value that there is not, it gets the one with which it needs the most memory: a
    comparison is true (so every token carries a gradient), a number is zero.

    Args:
        held: modules whose parameters and buffers are not counted. Gradients of the parameters are counted apart.

    Attributes:
        live: bytes that live now, by the phase that allocated them.
    """

    def __init__(self, *held: nn.Module) -> None:
        super().__init__()
        self.live: dict[str, int] = {}
        self._phase = "rest"
        self._gradients = 0
        # For each number of gradient bytes the most that lived beside them, in all and by phase.
        self._peaks: dict[int, tuple[int, dict[str, int]]] = {}
        self._sizes: dict[int, tuple[str, int]] = {}
        self._watch: dict[int, object] = {}
        self._parameters = [p for module in held for p in module.parameters()]
        for tensor in [*self._parameters, *(b for module in held for b in module.buffers())]:
            self._watch[_key(tensor)] = tensor.untyped_storage()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside this context, what is allocated belongs to phase `name`."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside this context a backward pass fills the gradients of the parameters that are held."""
        handles = [
            p.register_post_accumulate_grad_hook(self._gradient_is_there) for p in self._parameters if p.requires_grad
        ]
        try:
            with self.phase("backward"):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def peak(self, gradient_share: float = 1.0) -> int:
        """The most bytes that lived together.

        Args:
            gradient_share: how much of the parameters' gradients stays here, once they are complete.
        """
        return max((int(g * gradient_share) + live for g, (live, _) in self._peaks.items()), default=0)

    def parts_at_peak(self) -> dict[str, int]:
        """Bytes by phase at the moment of `peak()`; `gradients` are those of the parameters."""
        if not self._peaks:
            return {}
        gradients, (_, parts) = max(self._peaks.items(), key=lambda item: item[0] + item[1][0])
        return {**parts, "gradients": gradients}

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _count(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._watch:
            return
        storage = tensor.untyped_storage()
        self._sizes[key] = self._phase, storage.nbytes()
        self._watch[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live[self._phase] = self.live.get(self._phase, 0) + storage.nbytes()
        total = sum(self.live.values())
        if total > self._peaks.get(self._gradients, (-1, {}))[0]:
            self._peaks[self._gradients] = total, dict(self.live)

    def _forget(self, key: int) -> None:
        self._watch.pop(key, None)
        self._release(key)

    def _release(self, key: int) -> int:
        phase, size = self._sizes.pop(key, ("", 0))
        if size:
            self.live[phase] -= size
        return size

    def _gradient_is_there(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._gradients += self._release(_key(parameter.grad))

    # --- computing without values ------------------------------------------------------------------------------------

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
        return tree_map_only(Tensor, self._known, result)

    def _known(self, tensor: Tensor) -> Tensor:
        """A result as the computation gets it."""
        if not tensor.is_meta:
            return tensor
        if tensor.dtype == torch.bool:
            return torch.ones(tensor.shape, dtype=torch.bool)
        self._count(tensor)
        return tensor


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - identity; a storage on meta has no address


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
