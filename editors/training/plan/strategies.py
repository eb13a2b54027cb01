"""Bytes on each GPU under each strategy, from the sizes of an editor and of its training step. Arithmetic only.

W base weights, H the hypernetwork's weights (float32), G their gradients, N processes. Adam keeps two moments of each
trained weight, so 2 G bytes. The ZeRO stages are those of Rajbhandari et al. 2020 (section 5), as DeepSpeed does them.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from torch import nn

from editors.base_models.quantization import packed_bytes, quantised_weights
from editors.base_models.sites import find_stacks
from editors.training.learned import LearnedEditor
from editors.training.plan.step import StepMemory

# How DeepSpeed communicates: elements at once, and elements that stay gathered under ZeRO-3 because they may be needed
# again (the defaults of `editors.training.zero.ZeRO`).
BUCKET_ELEMENTS = 50_000_000
LIVE_ELEMENTS = 1_000_000_000


@dataclass(frozen=True)
class EditorSize:
    """What of an editor does not depend on the batch; bytes where nothing else is said.

    Args:
        base_elements: parameters of the base model.
        base: its weights.
        base_block: the largest block of the base model.
        base_outside: weights outside of blocks (embeddings, the head).
        base_unpacked: of a quantised base model the largest layer, which is unpacked while it computes.
        network_elements: parameters of the hypernetwork.
        network: its weights, and the statistics it keeps.
        trained: those weights that are trained.
    """

    base_elements: int
    base: int
    base_block: int
    base_outside: int
    network_elements: int
    network: int
    trained: int
    base_unpacked: int = 0

    @classmethod
    def of(cls, editor: LearnedEditor) -> EditorSize:
        """The sizes of a laid-out editor."""
        model = editor.lm.model
        blocks = [block for stack in find_stacks(model).values() for block in stack]
        trained = [p for p in editor.network.parameters() if p.requires_grad]
        quantised = [] if editor.base_model.quantization is None else quantised_weights(model)
        packed = {id(weight) for weight in quantised}
        base, block_bytes = _bytes(model, packed), [_bytes(block, packed) for block in blocks]
        return cls(
            base_elements=sum(p.numel() for p in model.parameters()),
            base=base,
            base_block=max(block_bytes),
            base_outside=base - sum(block_bytes),
            network_elements=sum(p.numel() for p in editor.network.parameters()),
            network=_bytes(editor.network),
            trained=sum(p.nbytes for p in trained),
            base_unpacked=max((weight.nbytes for weight in quantised), default=0),
        )


def _bytes(module: nn.Module, packed: Container[int] = ()) -> int:
    """What a module holds; `packed` are the ids of parameters that are kept quantised."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(packed_bytes(tensor) if id(tensor) in packed else tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class GPUMemory:
    """Bytes on each GPU, and in the host's memory for each GPU.

    Args:
        base: base weights that stay on the GPU.
        network: hypernetwork weights that stay on the GPU.
        gradients: of the hypernetwork.
        optimizer: Adam's moments; under ZeRO also the copy of the weights that DeepSpeed's optimiser keeps.
        buffers: for communication: buckets of gradients, weights gathered from other GPUs; and a layer unpacked.
        activations: what else lives at the peak of a step.
        host: in the host's memory.
    """

    base: float = 0
    network: float = 0
    gradients: float = 0
    optimizer: float = 0
    buffers: float = 0
    activations: float = 0
    host: float = 0

    @property
    def total(self) -> float:
        """On the GPU."""
        return self.base + self.network + self.gradients + self.optimizer + self.buffers + self.activations


def memory_of_each(size: EditorSize, step: StepMemory, processes: int) -> dict[str, GPUMemory]:
    """The memory of one GPU under each strategy; a quantised base model cannot be sharded.

    Args:
        size: of the editor.
        step: a training step of one process.
        processes: N, one on each GPU.
    """
    names = WHOLE_BASE if size.base_unpacked else STRATEGIES
    return {name: STRATEGIES[name](size, step, processes) for name in names}


def _activations(size: EditorSize, step: StepMemory, share: float) -> float:
    """What lives beside weights, Adam's moments and gradients at the peak of the passes.

    Adam's step itself takes nothing more: it is one kernel that writes in place (`Editor.configure_optimizers`).

    Args:
        size: of the editor.
        step: a training step.
        share: of the gradients, that stays.
    """
    return step.peak(share) - share * size.trained


def _whole(size: EditorSize, step: StepMemory, buffers: float = 0) -> GPUMemory:
    buffers += size.base_unpacked
    return GPUMemory(size.base, size.network, size.trained, 2 * size.trained, buffers, _activations(size, step, 1))


def _single(size: EditorSize, step: StepMemory, _: int) -> GPUMemory:
    return _whole(size, step)


def _ddp(size: EditorSize, step: StepMemory, _: int) -> GPUMemory:
    return _whole(size, step, buffers=size.trained)


def _zero12(share: Callable[[int], float]) -> Callable[[EditorSize, StepMemory, int], GPUMemory]:
    def memory(size: EditorSize, step: StepMemory, processes: int) -> GPUMemory:
        own = size.trained / processes
        return GPUMemory(
            size.base,
            size.network,
            share(processes) * size.trained,
            3 * own,
            _bucket(size) + size.base_unpacked,
            _activations(size, step, share(processes)),
        )

    return memory


def _bucket(size: EditorSize) -> float:
    """Two buckets of gradients: one is communicated while the other fills."""
    return 2 * min(size.trained, 4 * BUCKET_ELEMENTS)


def _gathered(size: EditorSize) -> float:
    """Weights of the base model and the hypernetwork that ZeRO-3 has gathered at a time."""
    width = size.base / size.base_elements
    return min(size.base + size.network, max(LIVE_ELEMENTS * width, size.base_block))


def _zero3(size: EditorSize, step: StepMemory, processes: int) -> GPUMemory:
    own = size.trained / processes
    return GPUMemory(
        size.base / processes,
        size.network / processes,
        own,
        3 * own,
        _bucket(size) + _gathered(size),
        _activations(size, step, 1 / processes),
    )


def _zero3_offload(size: EditorSize, step: StepMemory, processes: int) -> GPUMemory:
    host = (size.base + size.network + 4 * size.trained) / processes
    return GPUMemory(buffers=_bucket(size) + _gathered(size), activations=_activations(size, step, 0), host=host)


def _fsdp(size: EditorSize, step: StepMemory, processes: int) -> GPUMemory:
    """Each block is a unit, and the next one is gathered meanwhile; everything else is gathered for the whole step."""
    own = size.trained / processes
    return GPUMemory(
        size.base / processes,
        size.network / processes,
        own,
        2 * own,
        2 * size.base_block + size.base_outside + size.network,
        _activations(size, step, 1 / processes),
    )


STRATEGIES: dict[str, Callable[[EditorSize, StepMemory, int], GPUMemory]] = {
    "single GPU": _single,
    "DDP": _ddp,
    "ZeRO-1": _zero12(lambda _: 1),
    "ZeRO-2": _zero12(lambda processes: 1 / processes),
    "ZeRO-3": _zero3,
    "ZeRO-3, offload": _zero3_offload,
    "FSDP": _fsdp,
}
WHOLE_BASE = ("single GPU", "DDP", "ZeRO-1", "ZeRO-2")


def traffic_per_step(size: EditorSize, step: StepMemory, processes: int) -> dict[str, float]:
    """Bytes that each GPU receives in a step, where N processes pass on shares of 1/N in a ring.

    Args:
        size: of the editor.
        step: a training step of one process.
        processes: N.
    """
    others = (processes - 1) / processes
    traffic = {"DDP, ZeRO-1, ZeRO-2": 2 * size.trained * others}
    if not size.base_unpacked:
        traffic["ZeRO-3"] = (step.base_read + step.network_read + size.trained) * others
    return traffic
