"""How the cost of a training edit grows: `python -m benchmarks.growth [--steps N] [--output FILE]`.

One size at a time is changed: blocks of the base model, edited blocks, rank of MEND's transform, episodes in a step,
tokens in a text. The others stay at the reference: the middle of their values, and all blocks. (A size that is given
one value is not changed.) Every step is measured without a cache ("cold") and with one that knows the texts, factors
included ("warm"). The texts mean nothing, and all have the same length. Every cost is in units on the whole base model,
so that those of cut models can be compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from benchmarks.measure import UnitPass, cpu_seconds, learn_texts
from benchmarks.processes import with_words
from benchmarks.setting import Setting, quieten, save_result
from editors.base_models.blocks import find_blocks
from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.loading import load_base_model
from editors.common.errors import UsageError
from editors.lm.frozen import FrozenLM
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.batches import EncodedText
from editors.training.plan.skeleton import BatchSize

# As in configs/mend.yaml.
_CLIP = 100.0
_LABELS = {
    "blocks": "blocks of the base model",
    "edited_blocks": "edited blocks",
    "rank": "rank of the transform",
    "episodes": "episodes in a step",
    "tokens": "tokens in a text",
}
_VALUES = {
    "blocks": (10, 20, 30),
    "edited_blocks": (1, 3, 6),
    "rank": (128, 512, 1920),
    "episodes": (1, 4, 16),
    "tokens": (8, 16, 32, 64),
}


@dataclass(frozen=True)
class Size:
    """What a training step is made of.

    Args:
        blocks: how many of the base model's last blocks are there; those below the edited ones are the frozen prefix.
        edited_blocks: how many last blocks are edited.
        rank: of MEND's transform.
        episodes: independent edits in a step.
        tokens: of every text: an edit, a paraphrase and a locality text in each episode.
    """

    blocks: int
    edited_blocks: int
    rank: int
    episodes: int
    tokens: int


@dataclass(frozen=True)
class Cost:
    """What a training edit of a size costs, in units; medians over the steps.

    Args:
        size: of the step.
        cold: without a cache.
        warm: with one that knows all texts.
        unit: CPU-seconds of a unit, the mean of the one before and the one after.
    """

    size: Size
    cold: float
    warm: float
    unit: float


# CPU-seconds of a step of some size, cold and warm: the median of so many.
Measure = Callable[[Setting, PreTrainedModel, Size, int], tuple[float, float]]


def measure_growth(
    setting: Setting, values: Mapping[str, Sequence[int]], steps: int, measure: Measure | None = None
) -> dict[str, list[Cost]]:
    """For each axis with more than one value the costs at its values.

    Args:
        setting: which base model, and how many threads.
        values: for each field of `Size` what it is set to, in ascending order.
        steps: timed steps of each size, cold and warm.
        measure: what times them; by default `step_seconds`.
    """
    measure = measure or step_seconds
    torch.set_num_threads(setting.threads)
    model = load_base_model(setting.base_model_config()).requires_grad_(requires_grad=False)
    unit = UnitPass(model, _unit_text(model, setting.unit_tokens))
    unit()
    reference = _reference(values)
    axes = {
        axis: [replace(reference, **{axis: value}) for value in own] for axis, own in values.items() if len(own) > 1
    }
    known: dict[Size, Cost] = {}
    before = unit()
    for size in dict.fromkeys(size for own in axes.values() for size in own):
        cold, warm = measure(setting, model, size, steps)
        after = unit()
        between = (before + after) / 2 * size.episodes
        known[size] = Cost(size, cold / between, warm / between, between / size.episodes)
        before = after
    return {axis: [known[size] for size in own] for axis, own in axes.items()}


def _reference(values: Mapping[str, Sequence[int]]) -> Size:
    middle = {axis: own[(len(own) - 1) // 2] for axis, own in values.items()}
    return Size(**{**middle, "blocks": values["blocks"][-1]})


def _unit_text(model: PreTrainedModel, tokens: int) -> EncodedText:
    first = model.config.get_text_config().vocab_size // 4
    return EncodedText(tuple(range(first, first + tokens)), tokens - 1, tokens)


def step_seconds(setting: Setting, model: PreTrainedModel, size: Size, steps: int) -> tuple[float, float]:
    """CPU-seconds of a step, cold and warm."""
    with last_blocks(model, size.blocks):
        run = Steps(replace(setting, rank=size.rank, num_blocks=size.edited_blocks), model, size)
        cold = run.median_seconds(steps)
        run.warm_up()
        return cold, run.median_seconds(steps)


@contextmanager
def last_blocks(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Inside this context `model` has its last `count` blocks only."""
    name, blocks = find_blocks(model)
    if not 0 < count <= len(blocks):
        raise UsageError(f"--blocks must be from 1 to {len(blocks)}, which the base model has, got {count}")
    parent, _, own = name.rpartition(".")
    config = model.config.get_text_config()

    def have(kept: nn.ModuleList) -> None:
        setattr(model.get_submodule(parent), own, kept)
        config.num_hidden_layers = len(kept)

    have(nn.ModuleList(list(blocks)[-count:]))
    try:
        yield
    finally:
        have(blocks)


class Steps:
    """Training steps of one size, without Lightning: losses, gradients, clipping, Adam.

    Args:
        setting: which base model, rank and how many edited blocks.
        model: the base model.
        size: of the steps.
    """

    def __init__(self, setting: Setting, model: PreTrainedModel, size: Size) -> None:
        torch.manual_seed(0)
        self._editor = MEND(setting.base_model_config(), MENDConfig(rank=setting.rank))
        config = self._editor.base_model
        self._editor.install(FrozenLM(config, model, self._editor.tokenizer))
        self._optimizer = torch.optim.Adam(self._editor.parameter_groups(), lr=1e-6, fused=True)
        words = BatchSize(size.episodes, tokens=size.tokens).batch(DecoderOnly)
        self._batch = with_words(words, model.config.get_text_config().vocab_size)

    def warm_up(self) -> None:
        """Let the cache know the texts."""
        learn_texts(self._editor, [self._batch])

    def median_seconds(self, steps: int) -> float:
        """Median CPU-seconds of some steps, after one that is not counted."""
        self._step()
        return statistics.median(cpu_seconds(self._step) for _ in range(steps))

    def _step(self) -> None:
        self._editor.episode_losses(self._batch).total.backward()
        nn.utils.clip_grad_norm_(self._editor.network.parameters(), _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()


def result_table(costs: Mapping[str, Sequence[Cost]]) -> Table:
    """A row for each value of each axis, with what the cost is relative to the axis's first."""
    table = Table(title="One training edit, in units")
    table.add_column("")
    for heading in ("cold", "warm", "cold / first", "warm / first"):
        table.add_column(heading, justify="right")
    for axis, own in costs.items():
        for cost in own:
            ratios = (cost.cold / own[0].cold, cost.warm / own[0].warm)
            shown = f"{getattr(cost.size, axis):,} {_LABELS[axis]}"
            table.add_row(shown, f"{cost.cold:.3f}", f"{cost.warm:.3f}", *(f"{ratio:.2f}" for ratio in ratios))
        table.add_section()
    return table


def drawn(costs: Mapping[str, Sequence[Cost]]) -> Figure:
    """A picture with a panel for each axis."""
    figure = Figure(figsize=(3 * len(costs), 3), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (axis, own) in zip(panels, costs.items(), strict=True):
        for state in ("cold", "warm"):
            axes.plot([getattr(c.size, axis) for c in own], [getattr(c, state) for c in own], marker="o", label=state)
        axes.set(xlabel=_LABELS[axis], xlim=(0, None))
    # Only now: a limit that is set ends the fitting of the shared scale to further panels.
    panels[0].set(ylim=(0, None), ylabel="one training edit, units")
    panels[0].legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table; write it and a picture where asked to."""
    parser = argparse.ArgumentParser(description="How the cost of a training edit grows with each size.")
    parser.add_argument("--base-model", default=Setting.base_model, help="decoder-only base model")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each size, cold and warm")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    for axis, own in _VALUES.items():
        option = f"--{axis.replace('_', '-')}"
        parser.add_argument(option, type=int, nargs="+", default=own, help=f"{_LABELS[axis]} (default: {own})")
    parser.add_argument("--output", type=Path, help="write FILE (JSON) and a picture beside it")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise UsageError(f"--steps must be at least 1, got {options.steps}")
    values = {axis: sorted(set(getattr(options, axis))) for axis in _VALUES}
    if all(len(own) == 1 for own in values.values()):
        raise UsageError("every size has one value; give two or more to one of them, or leave it out")
    quieten()
    setting = Setting(options.base_model, threads=options.threads)
    costs = measure_growth(setting, values, options.steps)
    Console().print(result_table(costs))
    if options.output:
        plain = {axis: [asdict(cost) for cost in own] for axis, own in costs.items()}
        save_result(setting, {"growth": plain}, options.output)
        drawn(costs).savefig(options.output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
