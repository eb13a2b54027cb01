"""`MemoryPlan`: an editor's sizes, a training step of it, and what both take on each GPU."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from editors.base_models.loading import build_skeleton
from editors.training.learned import LearnedEditor
from editors.training.plan.skeleton import BatchSize, lay_out
from editors.training.plan.step import StepMemory, trace_step
from editors.training.plan.strategies import EditorSize, GPUMemory, memory_of_each, traffic_per_step


@dataclass(frozen=True)
class MemoryPlan:
    """What training an editor takes.

    Args:
        editor: its registered name.
        base_model: the base model's name.
        dtype: the type of its weights, and how they are quantised.
        sites: how many layers are edited.
        prefix_depth: how many blocks lie below the edit.
        batch: of each process.
        size: what does not depend on the batch.
        step: what does.
    """

    editor: str
    base_model: str
    dtype: str
    sites: int
    prefix_depth: int
    batch: BatchSize
    size: EditorSize
    step: StepMemory

    @classmethod
    def of(cls, editor: LearnedEditor, settings: PreTrainedConfig, batch: BatchSize) -> MemoryPlan:
        """Find it without weights, data or network.

        Args:
            editor: as the configuration makes it; it cannot be trained afterwards.
            settings: the base model's own configuration.
            batch: size of a training batch.

        Raises:
            BaseModelError: the base model is no language model.
            EditorError: this editor cannot edit it, or a site does not exist.
        """
        model = build_skeleton(editor.base_model, settings)
        lay_out(editor, model)
        dtype = str(model.dtype).removeprefix("torch.")
        if editor.base_model.quantization is not None:
            dtype = f"{editor.base_model.quantization} and {dtype}"
        sites, depth = len(editor.lm.sites), editor.lm.prefix_depth
        size, step = EditorSize.of(editor), trace_step(editor, batch)
        return cls(editor.registered_name, editor.base_model.name, dtype, sites, depth, batch, size, step)

    def gpus(self, count: int) -> dict[str, GPUMemory]:
        """The memory of each of `count` GPUs, by strategy."""
        return memory_of_each(self.size, self.step, count)

    def traffic(self, count: int) -> dict[str, float]:
        """Bytes that each of `count` GPUs receives in a step, by strategy."""
        return traffic_per_step(self.size, self.step, count)
