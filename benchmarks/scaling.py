"""What a second process is worth: `python -m benchmarks.scaling [--episodes N] [--steps N] [--output FILE]`.

MEND is trained with the same number of edits in a step, by one process and by two, each with a thread of its own.
Printed are steps in a second, their ratio to one process's, and where the time of a step goes. Needs two idle CPU
cores: on a busy machine the figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from benchmarks.processes import STRATEGIES, TRAIN, Case, as_folder, train, train_apart
from benchmarks.setting import Setting, quieten, save_result
from editors.common.errors import UsageError
from editors.common.files import save_json

_RESULT = "steps.json"
_WARMUP = 2
PHASES = ("forward", "backward", "optimizer", "between steps")


class StepClock(Callback):
    """Writes for each step the seconds of its phases on the first process's clock.

    Gradients are exchanged in "backward", or under ZeRO also in "optimizer"; ZeRO-3 gathers weights in both passes.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []
        self._since = 0.0

    def _charge(self, phase: str) -> None:
        """The time since the last call belongs to `phase`."""
        now = time.perf_counter()
        self._steps[-1][phase], self._since = now - self._since, now

    def on_train_start(self, *_: Any) -> None:
        """The first step begins."""
        self._since = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        """The batch is there."""
        self._steps.append({})
        self._charge("between steps")

    def on_before_backward(self, *_: Any) -> None:
        """The losses are computed."""
        self._charge("forward")

    def on_after_backward(self, *_: Any) -> None:
        """The optimiser's step follows."""
        self._charge("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is done."""
        self._charge("optimizer")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write what the first process measured."""
        if trainer.is_global_zero:
            save_json(self._steps[_WARMUP:], Path(trainer.default_root_dir) / _RESULT)


@dataclass(frozen=True)
class Timing:
    """Medians over the timed steps.

    Args:
        case: what was trained.
        phases: seconds of each phase.
        step: seconds of a step.
    """

    case: Case
    phases: dict[str, float]
    step: float


def measure(case: Case) -> Timing:
    """Time one case in processes of its own."""
    steps = train_apart("benchmarks.scaling", case, _RESULT)
    phases = {phase: statistics.median(step[phase] for step in steps) for phase in PHASES}
    return Timing(case, phases, statistics.median(sum(step.values()) for step in steps))


def timing_table(timings: Sequence[Timing]) -> Table:
    """Steps in a second, relative to the first, and seconds by phase."""
    table = Table(title=f"Training steps of {timings[0].case.processes * timings[0].case.episodes} edits")
    table.add_column("strategy")
    for heading in ("processes", "steps/s", "ratio", *(f"{phase}, s" for phase in PHASES)):
        table.add_column(heading, justify="right")
    for timing in timings:
        ratio = f"{timings[0].step / timing.step:.2f}"
        phases = (f"{timing.phases[phase]:.2f}" for phase in PHASES)
        name = "" if timing.case.processes == 1 else timing.case.strategy
        table.add_row(name, str(timing.case.processes), f"{1 / timing.step:.3f}", ratio, *phases)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the file."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == [TRAIN]:
        train(given[1:], StepClock())
        return
    parser = argparse.ArgumentParser(description="Training steps with one process and with two.")
    parser.add_argument("--base-model", default=Setting.base_model, help="base model, as for the other benchmarks")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES[1:], choices=STRATEGIES[1:], help="of the pairs")
    parser.add_argument("--episodes", type=int, default=16, help="edits in a step, of all processes together")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of every text")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    options = parser.parse_args(given)
    if options.episodes < 2 or options.episodes % 2 or options.steps < 1:
        raise UsageError(
            f"--episodes must be even and --steps at least 1, got {options.episodes} and {options.steps}: two "
            "processes take half of the edits each"
        )
    quieten()
    with as_folder(options.base_model) as model:
        timings = []
        for strategy in (STRATEGIES[0], *options.strategies):
            share = options.episodes if strategy == STRATEGIES[0] else options.episodes // 2
            timings.append(measure(Case("mend", strategy, share, options.tokens, model, _WARMUP + options.steps)))
    Console(width=122).print(timing_table(timings))
    setting = Setting(base_model=options.base_model)
    save_result(setting, {"timings": [asdict(timing) for timing in timings]}, options.output)


if __name__ == "__main__":
    main()
