"""What `train.py plan` shows: memory on each GPU under each strategy, and how it was computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from editors.common.errors import EditorError
from editors.training.learned import LearnedEditor
from editors.training.plan.architectures import find_architecture
from editors.training.plan.memory_plan import MemoryPlan
from editors.training.plan.skeleton import BatchSize
from editors.training.plan.strategies import BUCKET_ELEMENTS, LIVE_ELEMENTS, GPUMemory

_GIGA = 1e9
CARDS = (24, 48, 80)
# What CUDA itself, its libraries and gaps between tensors take.
_USABLE = 0.9
_LEAST_SHOWN = 5e5
_COLUMNS = ("base", "network", "gradients", "optimizer", "buffers", "activations", "total")


def show_plan(
    editor: LearnedEditor, batch: BatchSize, max_length: int, gpus: int, architecture: str | None
) -> MemoryPlan:
    """Find the plan and print it.

    Args:
        editor: as the configuration makes it; it cannot be trained afterwards.
        batch: size of its batches.
        max_length: longest text in tokens that the data may have.
        gpus: how many there are.
        architecture: see `find_architecture`.

    Raises:
        EditorError: something in the configuration cannot be.
    """
    if batch.tokens > max_length:
        raise EditorError(f"tokens {batch.tokens} is more than data.max_length {max_length}, which no text exceeds")
    settings, source = find_architecture(editor.base_model, architecture)
    plan = MemoryPlan.of(editor, settings, batch)
    Console().print(*tables(plan, gpus), "", *notes(plan, gpus, source, max_length), sep="\n")
    return plan


def tables(plan: MemoryPlan, gpus: int) -> list[Table]:
    """The plan's tables."""
    return [strategy_table(plan, gpus), peak_table(plan), traffic_table(plan, gpus)]


def strategy_table(plan: MemoryPlan, gpus: int) -> Table:
    """GB on each GPU under each strategy."""
    table = Table(title=f"{title(plan)}, {gpus} GPU{'s' if gpus > 1 else ''}: GB on each")
    table.add_column("strategy")
    for heading in ("parameters", "base", "hypernet", "gradients", "Adam", "buffers", "activations", "total"):
        table.add_column(heading, justify="right")
    table.add_column("fits", justify="right")
    table.add_column("host", justify="right")
    for name, memory in plan.gpus(gpus).items():
        values = (f"{getattr(memory, column) / _GIGA:.2f}" for column in _COLUMNS)
        host = f"{memory.host / _GIGA:.1f}" if memory.host else ""
        table.add_row(name, f"{held(plan, memory) / _GIGA:.2f} G", *values, smallest_card(memory), host)
    return table


def title(plan: MemoryPlan) -> str:
    """Which editor, which model."""
    return f"{plan.editor} for {plan.base_model} in {plan.dtype}"


def held(plan: MemoryPlan, memory: GPUMemory) -> float:
    """How many parameters stay on a GPU."""
    size = plan.size
    return size.base_elements * memory.base / size.base + size.network_elements * memory.network / size.network


def smallest_card(memory: GPUMemory) -> str:
    """The smallest GPU that it fits, with a tenth of it left free."""
    return next((f"{card} GB" for card in CARDS if memory.total <= _USABLE * card * _GIGA), "none")


def peak_table(plan: MemoryPlan) -> Table:
    """What lives at the peak of a step beside weights and Adam's state."""
    table = Table(title="Peak of a step")
    table.add_column("of")
    table.add_column("GB", justify="right")
    for name, size in plan.step.parts.items():
        if size >= _LEAST_SHOWN:
            table.add_row(name, f"{size / _GIGA:.3f}")
    table.add_section()
    table.add_row("together", f"{plan.step.peak(1) / _GIGA:.3f}")
    return table


def traffic_table(plan: MemoryPlan, gpus: int) -> Table:
    """GB that each GPU receives in a step."""
    table = Table(title="Received in a step")
    table.add_column("strategy")
    table.add_column("GB on each", justify="right")
    for name, size in plan.traffic(gpus).items():
        table.add_row(name, f"{size / _GIGA:.2f}")
    return table


def notes(plan: MemoryPlan, gpus: int, source: str, max_length: int) -> Iterator[str]:
    """How the numbers were computed."""
    size, batch = plan.size, plan.batch
    width = size.base / size.base_elements
    yield f"Architecture: {source}. No weights, data or network were needed. 1 GB = 1e9 bytes."
    yield (
        f"base: {size.base_elements:,} parameters of {width:.3g} bytes ({plan.dtype}); frozen, so no gradients. "
        f"{plan.sites} layers are edited, {plan.prefix_depth} blocks lie below them."
    )
    yield (
        f"hypernet: {size.network_elements:,} parameters of 4 bytes (float32), {size.trained / 4:,.0f} of them "
        "trained; 4 bytes each for gradients, 8 for Adam's moments; ZeRO's optimiser keeps another 4. ZeRO-1 shards "
        f"Adam's state by {gpus}, ZeRO-2 gradients too, ZeRO-3 and FSDP all weights too."
    )
    largest = (
        "the largest quantised layer, unpacked while it computes. ZeRO-3 and FSDP cannot shard packed weights."
        if size.base_unpacked
        else f"what ZeRO-3 has gathered, at most {LIVE_ELEMENTS / _GIGA:.0f} G elements; for FSDP two blocks, "
        "embeddings, head and hypernetwork."
    )
    yield (
        f"buffers: DDP's copy of the gradients; ZeRO's two buckets of at most {BUCKET_ELEMENTS / 1e6:.0f} M elements; "
        f"{largest}"
    )
    yield (
        "activations: the program ran a training step, forward and backward, on torch's meta device and counted what "
        f"lived: {batch.episodes} episodes of {batch.edits} edit(s), paraphrases, {batch.locality} locality text(s) "
        f"each; all texts of {batch.tokens} tokens, {batch.answer_tokens} of them the answer, each token with a "
        "gradient. Gradients come while activations go, so what both share is counted once. data.max_length allows "
        f"texts of {max_length} tokens; set --tokens to the longest of yours."
    )
    yield f"fits: the smallest of {', '.join(map(str, CARDS))} GB of which a tenth stays free for CUDA and for gaps."


def count_gpus(trainer: Any) -> int:
    """How many GPUs a configured trainer would use; 1 where it is to find out itself.

    Args:
        trainer: the arguments of Lightning's Trainer.
    """
    devices = trainer.devices
    count = len(devices.split(",")) if isinstance(devices, str) and "," in devices else devices
    count = len(count) if isinstance(count, list) else int(count) if str(count).isdigit() else 1
    return max(1, count) * int(trainer.num_nodes)
