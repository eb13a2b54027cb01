"""What a training step costs: `python -m benchmarks.training_step [--path DIR] [--episodes 1 8 16 32] [--output FILE]`.

Each number of episodes is measured without a cache ("cold") and with one that knows all texts, factors included
("warm"). Each is measured in a process of its own, so that the peak memory of one does not hide another's; the peak is
read before the first unit runs, because a unit holds the gradients of all weights.
With `--compile off on`, each of both also with `model.training.torch_compile`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import quartiles, verdict
from benchmarks.setting import Setting, add_options, save_result, setting_from
from benchmarks.training_run import PHASES, TrainingRun, measure_training

_UNITS_JUDGED_AT = (16, 32)
# By rank of the transform and whether the cache is warm.
_TARGET_UNITS = {(1920, False): 0.55, (1920, True): 0.37, (512, False): 0.37, (512, True): 0.20}
_TARGET_PEAK = 2.0e9
_PEAK_JUDGED_AT = (16,)


def time_table(runs: Sequence[TrainingRun], rank: int) -> Table:
    """What one training edit costs: medians over the steps, with quartiles of the total.

    Args:
        runs: a column each.
        rank: of the transform; it decides which target the total is held against.
    """
    table = _table("One training edit", runs)
    for phase in PHASES:
        table.add_row(f"{phase}, units", *(f"{quartiles(run.units_per_edit(phase))[1]:.3f}" for run in runs))
    table.add_section()
    totals = [quartiles(run.units_per_edit()) for run in runs]
    table.add_row("total, units", *(f"{median:.3f}" for _, median, _ in totals))
    table.add_row("quartiles", *(f"{first:.3f}-{third:.3f}" for first, _, third in totals))
    targets = [_TARGET_UNITS.get((rank, run.warm)) if run.episodes in _UNITS_JUDGED_AT else None for run in runs]
    held = [
        f"{target:.2f} {verdict(judged=True, within=total[1] <= target)}" if target else ""
        for target, total in zip(targets, totals, strict=True)
    ]
    table.add_row("at most, units", *held)
    table.add_row("the floor, units", *(f"{run.floor / run.unit():.3f}" for run in runs))
    table.add_row("total / floor", *(f"{run.times_the_floor():.2f}" for run in runs))
    table.add_section()
    table.add_row("total, CPU-seconds", *(f"{run.cpu_per_edit():.3f}" for run in runs))
    table.add_row("a unit, CPU-seconds", *(f"{run.unit():.3f}" for run in runs))
    table.add_row("warm-up, seconds", *(f"{run.warmup:.0f}" for run in runs))
    table.add_row("edits in a second", *(f"{run.edits_per_second():.2f}" for run in runs))
    return table


def memory_table(runs: Sequence[TrainingRun]) -> Table:
    """Peak memory in GB, and padding."""
    table = _table("Memory in GB, and padding", runs)
    table.add_row("loaded", *(f"{run.loaded / 1e9:.2f}" for run in runs))
    table.add_row("peak of a step", *(f"{run.peak / 1e9:.2f}" for run in runs))
    table.add_row("peak above loaded", *(f"{(run.peak - run.loaded) / 1e9:.2f}" for run in runs))
    table.add_row("peak of the process", *(f"{run.process_peak / 1e9:.2f}" for run in runs))
    judged = [(run.episodes in _PEAK_JUDGED_AT, run.process_peak <= _TARGET_PEAK) for run in runs]
    table.add_row(f"at most {_TARGET_PEAK / 1e9}?", *(verdict(*pair) for pair in judged))
    table.add_section()
    table.add_row("padding above the prefix", *(f"{run.padding_share():.0%}" for run in runs))
    table.add_row("padding in the prefix", *(f"{run.prefix_padding_share():.0%}" for run in runs))
    table.add_row("prefix passes in a step", *(f"{run.prefix_passes():.0f}" for run in runs))
    return table


def _table(title: str, runs: Sequence[TrainingRun]) -> Table:
    table = Table(title=title)
    table.add_column("episodes in a step")
    for run in runs:
        words = [f"{run.episodes} {'warm' if run.warm else 'cold'}", *(["compiled"] if run.compiled else [])]
        table.add_column(" ".join(words), justify="right")
    return table


def summary(run: TrainingRun) -> dict[str, Any]:
    """The run as plain values, its medians first."""
    first, median, third = quartiles(run.units_per_edit())
    return {
        "units_per_edit": {"median": median, "quartiles": [first, third]},
        "phases_units_per_edit": {phase: quartiles(run.units_per_edit(phase))[1] for phase in PHASES},
        "cpu_seconds_per_edit": run.cpu_per_edit(),
        "unit_cpu_seconds": run.unit(),
        "edits_per_second": run.edits_per_second(),
        "times_the_floor": run.times_the_floor(),
        "padding_share": run.padding_share(),
        "prefix_padding_share": run.prefix_padding_share(),
        **asdict(run),
    }


def measure_apart(
    setting: Setting, episodes: int, steps: int, warmup: int, *, warm: bool, compiled: bool
) -> TrainingRun:
    """`measure_training` in a new process."""
    # Threads that wait must not burn CPU-seconds. Read when the OpenMP library is loaded.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure_training, setting, episodes, steps, warmup, warm=warm, compiled=compiled).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the file."""
    parser = argparse.ArgumentParser(description="What a training step costs, by phase.")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1, 8, 16, 32], help="episodes in a step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps for each number of episodes")
    parser.add_argument(
        "--warmup", type=int, default=4, help="steps before, with the largest batches; the peak is theirs"
    )
    parser.add_argument("--cache", nargs="+", choices=("cold", "warm"), default=["cold", "warm"], help="what is kept")
    parser.add_argument(
        "--compile", nargs="+", choices=("off", "on"), default=["off"], help="model.training.torch_compile"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    setting, console = setting_from(options), Console()
    runs = []
    caches, compiles = ([c == "warm" for c in options.cache], [c == "on" for c in options.compile])
    for episodes, warm, compiled in product(options.episodes, caches, compiles):
        with console.status(f"{options.steps} steps of {episodes} episodes"):
            runs.append(measure_apart(setting, episodes, options.steps, options.warmup, warm=warm, compiled=compiled))
    console.print(time_table(runs, setting.rank), memory_table(runs))
    save_result(setting, {"runs": [summary(run) for run in runs]}, options.output)


if __name__ == "__main__":
    main()
