"""The memory plan against reality: `python -m benchmarks.plan_check [--editors …] [--strategies …] [--output FILE]`.

Each case trains two steps on the CPU, in as many processes as its strategy needs. The most memory that one of them took
in training, less what it held before the base model was loaded, stands beside what `train.py plan` computes for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.processes import STRATEGIES, TRAIN, Case, as_folder, train, train_apart
from benchmarks.setting import Setting, quieten, save_result
from callbacks.memory import MemoryReport
from editors.base_models.loading import load_config
from editors.common.errors import EditorError
from editors.making.registry import registered_methods
from editors.training.plan.memory_plan import MemoryPlan


@dataclass(frozen=True)
class Outcome:
    """Bytes of the process that took most.

    Args:
        case: what was trained.
        planned: peak as the plan computes it.
        measured: peak in training, less what was there before the base model was loaded.
        loading: peak until then, likewise.
        base_parameters: those of the base model that stay with a process.
    """

    case: Case
    planned: float
    measured: float
    loading: float
    base_parameters: int


def measure(case: Case) -> Outcome:
    """Plan one case here, and train it in processes of its own.

    Raises:
        EditorError: the training failed, or this system does not tell the memory of a process.
    """
    editor = case.make()
    plan = MemoryPlan.of(editor, load_config(editor.base_model), case.batch)
    planned = plan.gpus(case.processes)[case.strategy].total
    report = train_apart("benchmarks.plan_check", case, "results/memory.json")
    if not report[0]["peak_training"]:
        raise EditorError("this system does not tell the memory of a process; use Linux")
    measured, loading = (
        max(own[peak] - own["bytes_before"] for own in report) for peak in ("peak_training", "peak_loading")
    )
    return Outcome(case, planned, measured, loading, max(own["base_parameters"] for own in report))


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Planned beside measured."""
    table = Table(title="Memory of the process that took most, GB")
    table.add_column("editor")
    table.add_column("strategy")
    headings = ("processes", "episodes", "base kept, M", "loading", "planned", "measured", "planned / measured")
    for heading in headings:
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        case = outcome.case
        numbers = (f"{value / 1e9:.2f}" for value in (outcome.loading, outcome.planned, outcome.measured))
        counts = (str(case.processes), str(case.episodes), f"{outcome.base_parameters / 1e6:.1f}")
        strategy = "" if case.processes == 1 else case.strategy
        table.add_row(case.editor, strategy, *counts, *numbers, f"{outcome.planned / outcome.measured:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the file."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == [TRAIN]:
        train(given[1:], MemoryReport())
        return
    parser = argparse.ArgumentParser(description="The memory plan against measured peaks.")
    parser.add_argument("--base-model", default=Setting.base_model, help="base model, as for the other benchmarks")
    parser.add_argument(
        "--editors",
        nargs="+",
        default=sorted(registered_methods()),
        choices=sorted(registered_methods()),
        help="which editors",
    )
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES, help="which strategies")
    parser.add_argument("--episodes", type=int, nargs="+", default=[16], help="episodes in a step of a process")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of every text")
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")
    options = parser.parse_args(given)
    quieten()
    with as_folder(options.base_model) as model:
        outcomes = [
            measure(Case(editor, strategy, episodes, options.tokens, model))
            for editor in options.editors
            for strategy in options.strategies
            for episodes in options.episodes
        ]
    Console(width=122).print(outcome_table(outcomes))
    setting = Setting(base_model=options.base_model)
    save_result(setting, {"outcomes": [asdict(outcome) for outcome in outcomes]}, options.output)


if __name__ == "__main__":
    main()
