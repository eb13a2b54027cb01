"""Follows the memory that a computation takes, which runs without its values."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from editors.base_models.without_values import WithoutValues


class MemoryTrace(WithoutValues):
    """Inside this context, tensors on the meta device are counted while they live.

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

    def made(self, tensor: Tensor) -> None:
        """Count a tensor that has come out of an operation, if it is a new one."""
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


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - identity; a storage on meta has no address
