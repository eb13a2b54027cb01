"""What a training step costs: `python -m benchmarks.training_step [--path DIR] [--episodes 1 8 16 32] [--output FILE]`.

Each number of episodes is measured in a process of its own, so that the peak memory of one does not hide another's; the
peak is read before the first unit runs, because a unit holds the gradients of all weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import quartiles
from benchmarks.setting import Setting, add_options, circumstances, setting_from
from benchmarks.training_run import PHASES, TrainingRun, measure_training
from editors.files import save_json

_TARGET_UNITS = 0.65
_UNITS_JUDGED_AT = (16, 32)
_TARGET_PEAK = 2.2e9
_PEAK_JUDGED_AT = (16,)


def time_table(runs: Sequence[TrainingRun]) -> Table:
    """Medians of the cost of one training edit in units, by phase."""
    table = Table(title="One training edit, in units", caption="medians over steps; in brackets the quartiles")
    for name in ("episodes", *PHASES, "total", f"<= {_TARGET_UNITS}?", "CPU-s", "edits/s"):
        table.add_column(name, justify="right")
    for run in runs:
        first, median, third = quartiles(run.units_per_edit())
        phases = [f"{quartiles(run.units_per_edit(phase))[1]:.3f}" for phase in PHASES]
        verdict = _verdict(median <= _TARGET_UNITS, judged=run.episodes in _UNITS_JUDGED_AT)
        total = f"{median:.3f} [{first:.3f}-{third:.3f}]"
        rates = (f"{run.cpu_per_edit():.3f}", f"{run.edits_per_second():.2f}")
        table.add_row(str(run.episodes), *phases, total, verdict, *rates)
    return table


def memory_table(runs: Sequence[TrainingRun]) -> Table:
    """Peak memory and padding."""
    table = Table(title="Memory in GB, and the share of padding in the tokens computed")
    peak = f"peak <= {_TARGET_PEAK / 1e9}?"
    for name in ("episodes", "loaded", "peak of a step", "above loaded", "with loading", peak, "padding", "in the prefix"):
        table.add_column(name, justify="right")
    for run in runs:
        sizes = (run.loaded, run.peak, run.peak - run.loaded, run.process_peak)
        verdict = _verdict(run.peak <= _TARGET_PEAK, judged=run.episodes in _PEAK_JUDGED_AT)
        shares = (f"{run.padding_share():.0%}", f"{run.prefix_padding_share():.0%}")
        table.add_row(str(run.episodes), *(f"{size / 1e9:.2f}" for size in sizes), verdict, *shares)
    return table


def _verdict(within: bool, *, judged: bool) -> str:
    return ("[green]yes[/]" if within else "[red]no[/]") if judged else ""


def summary(run: TrainingRun) -> dict[str, Any]:
    """The run as plain values, its medians first."""
    first, median, third = quartiles(run.units_per_edit())
    return {
        "units_per_edit": {"median": median, "quartiles": [first, third]},
        "phases_units_per_edit": {phase: quartiles(run.units_per_edit(phase))[1] for phase in PHASES},
        "cpu_seconds_per_edit": run.cpu_per_edit(),
        "edits_per_second": run.edits_per_second(),
        "padding_share": run.padding_share(),
        "prefix_padding_share": run.prefix_padding_share(),
        **asdict(run),
    }


def measure_apart(setting: Setting, episodes: int, steps: int, warmup: int) -> TrainingRun:
    """`measure_training` in a new process."""
    # Threads that wait must not burn CPU-seconds. Read when the OpenMP library is loaded.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure_training, setting, episodes, steps, warmup).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the file."""
    parser = argparse.ArgumentParser(description="What a training step costs, by phase.")
    parser.add_argument("--episodes", type=int, nargs="+", default=[1, 8, 16, 32], help="episodes in a step")
    parser.add_argument("--steps", type=int, default=8, help="timed steps for each number of episodes")
    parser.add_argument("--warmup", type=int, default=4, help="steps before, with the largest batches; the peak is theirs")
    add_options(parser)
    options = parser.parse_args(arguments)
    setting, console = setting_from(options), Console()
    runs = []
    for episodes in options.episodes:
        with console.status(f"{options.steps} steps of {episodes} episodes"):
            runs.append(measure_apart(setting, episodes, options.steps, options.warmup))
    console.print(time_table(runs), memory_table(runs))
    if options.output:
        save_json({**circumstances(setting), "runs": [summary(run) for run in runs]}, options.output)


if __name__ == "__main__":
    main()
