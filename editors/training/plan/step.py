"""A training step, run without values: what it holds at its peak, and which weights it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from editors.common.phases import HYPERNETWORK, LOSSES, forward_as_phase, heard_by, phase
from editors.training.learned import LearnedEditor
from editors.training.plan.skeleton import BatchSize
from editors.training.plan.trace import MemoryTrace


@dataclass(frozen=True)
class StepMemory:
    """What a training step takes beside weights and optimiser state.

    Args:
        peak: given the share of the hypernetwork's gradients that stays on a GPU, the most bytes that live together,
            those gradients among them.
        parts: bytes at the peak by what they belong to.
        base_read: bytes of base weights that are read, counted each time they are.
        network_read: bytes of the hypernetwork's weights that are read, counted each time they are.
    """

    peak: Callable[[float], int]
    parts: dict[str, int]
    base_read: int
    network_read: int


def trace_step(editor: LearnedEditor, size: BatchSize) -> StepMemory:
    """Run a training step of a laid-out editor, forward and backward, without values.

    Args:
        editor: see `lay_out`.
        size: of the batch.
    """
    batch = size.batch(type(editor.lm.family))
    trace, reads = MemoryTrace(editor), _Reads(editor)
    with ExitStack() as stack:
        stack.enter_context(reads.counted())
        stack.enter_context(heard_by(trace.phase))
        stack.enter_context(forward_as_phase(editor.network, HYPERNETWORK))
        stack.enter_context(trace)
        with phase(LOSSES):
            loss = editor.episode_losses(batch).total
        with trace.backward():
            loss.backward()
    editor.zero_grad(set_to_none=True)
    return StepMemory(trace.peak, trace.parts_at_peak(), reads.base, reads.network)


class _Reads:
    """Counts the weights that forward and backward passes read: what ZeRO-3 has to gather.

    Args:
        editor: a laid-out editor.
    """

    def __init__(self, editor: LearnedEditor) -> None:
        self.base = self.network = 0
        self._editor = editor

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Inside this context passes are counted."""
        handles = [m.register_forward_hook(self._add("base")) for m in _with_weights(self._editor.lm.model)]
        handles += [m.register_forward_hook(self._add("network")) for m in _with_weights(self._editor.network)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, part: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            size = sum(p.nbytes for p in module.parameters(recurse=False))
            # The backward pass needs the weights once more.
            passes = 2 if any(isinstance(t, Tensor) and t.requires_grad for t in _flat(output)) else 1
            setattr(self, part, getattr(self, part) + passes * size)

        return hook


def _with_weights(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]


def _flat(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)
