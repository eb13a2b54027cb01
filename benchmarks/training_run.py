"""One training run, measured: a real `Trainer.fit` with timers around the editor's own methods."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.floor import floor_operations, operations_per_second
from benchmarks.measure import PhaseClock, UnitPass, learn_texts
from benchmarks.setting import Setting, quieten
from callbacks.memory import peak_bytes, reset_peak, resident_bytes
from datamodules.base import EditDataModule
from datamodules.sampling import EpisodeNumbers
from editors.common.phases import CAPTURE, HYPERNETWORK, LOSSES, PREFIX, forward_as_phase, heard_by
from editors.lm.batching.bucketing import length_buckets
from editors.methods.mend.module import MEND
from editors.texts.episodes import EditBatch
from editors.training.compilation import CompiledForwards, TorchCompile

PHASES = ("data", "prefix", "capture", "transform", "edited forward", "backward", "optimizer", "other")
_NAMES = {PREFIX: "prefix", CAPTURE: "capture", HYPERNETWORK: "transform", LOSSES: "edited forward"}
# The first steps are the ones with most padded tokens among this many, so that the peak memory is that of a long run.
_SEARCHED_STEPS = 64
# As in configs/mend.yaml.
_CLIP = 100.0


@dataclass
class Step:
    """One training step.

    Args:
        phases: CPU-seconds of each phase.
        cpu: CPU-seconds of the whole step.
        wall: seconds on the clock.
        unit: CPU-seconds of a unit, the mean of the one before and the one after the step.
        real_tokens: tokens of the step's texts.
        padded_tokens: the same with padding, as the blocks above the prefix compute them.
        read_tokens: tokens that the prefix reads, each text and each leading part that texts share counted once.
        prefix_tokens: tokens that it computes, padding included.
        prefix_passes: passes the prefix takes.
    """

    phases: dict[str, float]
    cpu: float
    wall: float
    unit: float
    real_tokens: int
    padded_tokens: int
    read_tokens: int
    prefix_tokens: int
    prefix_passes: int


@dataclass
class TrainingRun:
    """All steps of one run, and its memory in bytes.

    Args:
        episodes: episodes in each step.
        warm: whether the cache knew all texts.
        compiled: whether torch.compile made kernels of parts of a step.
        floor: CPU-seconds that the arithmetic of an edit of known texts takes at the rate of a large matrix product.
        loaded: memory once base model and hypernetwork are loaded.
        peak: most memory in a step.
        process_peak: most memory in the process's life, loading included.
        warmup: seconds on the clock of the steps before the timed ones, in which the kernels are compiled.
        steps: the timed steps.
    """

    episodes: int
    warm: bool = False
    compiled: bool = False
    floor: float = 0.0
    loaded: int = 0
    peak: int = 0
    process_peak: int = 0
    warmup: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def units_per_edit(self, phase: str | None = None) -> list[float]:
        """For each step the cost of one edit in units: of one phase, or of all."""
        costs = [step.cpu if phase is None else step.phases.get(phase, 0.0) for step in self.steps]
        return [cost / self.episodes / step.unit for cost, step in zip(costs, self.steps, strict=True)]

    def cpu_per_edit(self) -> float:
        """Median CPU-seconds of one edit."""
        return statistics.median(step.cpu for step in self.steps) / self.episodes

    def unit(self) -> float:
        """Median CPU-seconds of a unit."""
        return statistics.median(step.unit for step in self.steps)

    def times_the_floor(self) -> float:
        """How many times the floor the median edit costs."""
        return self.cpu_per_edit() / self.floor

    def edits_per_second(self) -> float:
        """Median edits in a second on the clock."""
        return self.episodes / statistics.median(step.wall for step in self.steps)

    def padding_share(self) -> float:
        """Share of padding in the tokens that the blocks above the prefix compute."""
        return 1 - sum(s.real_tokens for s in self.steps) / sum(s.padded_tokens for s in self.steps)

    def prefix_passes(self) -> float:
        """Median number of passes that the prefix of a step takes."""
        return statistics.median(step.prefix_passes for step in self.steps)

    def prefix_padding_share(self) -> float:
        """Share of padding in the tokens that the prefix computes; 0 where it computes none."""
        computed = sum(step.prefix_tokens for step in self.steps)
        return 1 - sum(step.read_tokens for step in self.steps) / computed if computed else 0.0


def measure_training(
    setting: Setting, episodes: int, steps: int, warmup: int, *, warm: bool = False, compiled: bool = False
) -> TrainingRun:
    """Train `warmup` steps for the peak memory, then `steps` timed steps with a unit after each.

    Args:
        setting: what is measured.
        episodes: episodes in a step.
        steps: timed steps.
        warmup: steps before; the kernels are compiled in them.
        warm: let a cache know all texts beforehand, as in later epochs, factors included; otherwise there is none.
        compiled: with `model.training.torch_compile`.
    """
    quieten()
    editor, data = setting.editor(), setting.data(episodes)
    run = TrainingRun(episodes, warm, compiled)
    if compiled:
        editor.compiled = CompiledForwards.of(TorchCompile(), editor.lm, editor.compiled_parts())
    timer = _StepTimer(run, UnitPass(editor.lm.model, setting.unit_text(data)), warmup)
    dataset, numbers = data.train_dataloader().dataset, _numbers(data, warmup)
    if warm:
        learn_texts(editor, (dataset[each] for each in numbers[: warmup + steps]))
    with timer.attached(editor), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", max_steps=warmup + steps, max_epochs=-1, gradient_clip_val=_CLIP, callbacks=[timer],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(editor, train_dataloaders=DataLoader(dataset, sampler=numbers, batch_size=None))
    epoch, last = numbers[warmup + steps - 1]
    alone = [dataset[(epoch, [episode])] for episode in last]
    run.floor = floor_operations(editor, alone) / operations_per_second()
    return run


def _numbers(data: EditDataModule, warmup: int) -> list[EpisodeNumbers]:
    """The module's training batches, preceded by the `warmup` largest of the first ones."""
    own = data.train_dataloader()
    drawn: list[EpisodeNumbers] = list(islice(own.sampler, _SEARCHED_STEPS))
    largest = sorted(drawn, key=lambda numbers: own.dataset[numbers].token_counts()[1], reverse=True)[:warmup]
    return [*largest, *drawn]


def _computed_tokens(batch: EditBatch) -> int:
    """Tokens that the blocks above the prefix compute, padding included; the unedited locality pass is not counted."""
    together = length_buckets([batch.rephrase, batch.locality], [None, None])
    return batch.edit.input_ids.numel() + sum(bucket.tokens.input_ids.numel() for bucket in together)


class _StepTimer(Callback):
    """Fills a `TrainingRun` as Lightning trains."""

    def __init__(self, run: TrainingRun, unit: UnitPass, warmup: int) -> None:
        self._run = run
        self._unit = unit
        self._warmup = warmup
        self._clock = PhaseClock(_NAMES)
        self._last_unit = 0.0
        self._began = 0.0
        self._start = (0.0, 0.0)
        self._tokens = (0, 0)
        # Of each pass of the prefix: tokens that are read, and tokens that are computed.
        self._prefix_passes: list[tuple[int, int]] = []

    def attached(self, editor: MEND) -> ExitStack:
        """A context in which what the editor does is charged to its phases."""
        stack = ExitStack()
        stack.enter_context(heard_by(self._clock.charging))
        stack.enter_context(forward_as_phase(editor.network, HYPERNETWORK))
        reader = editor.lm.model.base_model
        stack.callback(reader.register_forward_pre_hook(self._count_tokens, with_kwargs=True).remove)
        return stack

    def _count_tokens(self, _: nn.Module, __: Any, arguments: dict[str, Any]) -> None:
        if self._clock.phase == "prefix":
            ids, mask = arguments["input_ids"], arguments["attention_mask"]
            self._prefix_passes.append((int(mask[:, -ids.shape[1] :].sum()), ids.numel()))

    def _begin(self) -> None:
        self._prefix_passes = []
        self._start = (time.process_time(), time.perf_counter())
        self._clock.enter("data")

    def on_train_start(self, *_: Any) -> None:
        """Base model and hypernetwork are loaded."""
        self._run.process_peak = peak_bytes()
        reset_peak()
        self._run.loaded = resident_bytes()
        self._began = time.perf_counter()
        self._begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: EditBatch, _: int) -> None:  # noqa: ARG002
        """The batch is there."""
        self._clock.enter("other")
        self._tokens = (batch.token_counts()[0], _computed_tokens(batch))

    def on_before_backward(self, *_: Any) -> None:
        """The losses are computed."""
        self._clock.enter("backward")

    def on_after_backward(self, *_: Any) -> None:
        """Clipping and the optimiser's step follow."""
        self._clock.enter("optimizer")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep the step if it is a timed one, and measure a unit."""
        phases = self._clock.take()
        cpu, wall = time.process_time() - self._start[0], time.perf_counter() - self._start[1]
        if trainer.global_step == self._warmup:
            self._run.warmup = time.perf_counter() - self._began
            self._run.peak = peak_bytes()
            self._run.process_peak = max(self._run.process_peak, self._run.peak)
            self._unit()
        if trainer.global_step >= self._warmup:
            before, self._last_unit = self._last_unit, self._unit()
        if trainer.global_step > self._warmup:
            unit = (before + self._last_unit) / 2
            read, computed = (sum(counts[i] for counts in self._prefix_passes) for i in (0, 1))
            sizes = (*self._tokens, read, computed, len(self._prefix_passes))
            self._run.steps.append(Step(phases, cpu, wall, unit, *sizes))
        self._begin()
