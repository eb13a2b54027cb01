"""`ResultsFile`: the metrics of validation and test, as `metrics.json` and as a table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from editors.common.files import save_json
from editors.scoring.names import PROMISES, before_edit
from editors.training.module import Editor
from editors.training.run.provenance import run_facts, trained_steps


class ResultsFile(Callback):
    """Writes `results/metrics.json` in the run's folder and shows the metrics as a table.

    The file holds every metric with its protocol in the name, and the facts needed to check it: split, base model and
    hash of its weights, data hashes, seed, versions, command. Each validation of a training replaces it.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation metrics."""
        if not trainer.sanity_checking:
            self._write("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test metrics."""
        self._write("test", trainer, pl_module)

    def _write(self, stage: str, trainer: Trainer, editor: LightningModule) -> None:
        assert isinstance(editor, Editor)
        metrics = stage_metrics(trainer, stage)
        if not metrics or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "results" / "metrics.json"
        save_json({"metrics": metrics, "split": stage, **run_facts(trainer, editor)}, path)
        console = Console()
        console.print(metrics_table(metrics, f"{stage} metrics at step {trained_steps(trainer, editor)}"))
        if stage == "test":
            console.print(f"All metrics: {path}")


def stage_metrics(trainer: Trainer, stage: str) -> dict[str, float]:
    """The metrics of one stage, without the stage's prefix."""
    prefix = f"{stage}/"
    found: dict[str, Any] = trainer.callback_metrics
    return {name.removeprefix(prefix): float(value) for name, value in found.items() if name.startswith(prefix)}


def metrics_table(metrics: dict[str, float], title: str) -> Table:
    """Promise, protocol and measure with the values before and after the edit, in per cent."""
    table = Table(title=title)
    for heading in ("promise", "protocol", "measure"):
        table.add_column(heading)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    names = [n for n in metrics if n.startswith(PROMISES)]
    for name in sorted(names, key=lambda n: next(i for i, row in enumerate(PROMISES) if n.startswith(row))):
        before = metrics.get(before_edit(name))
        table.add_row(*name.split("/"), "" if before is None else f"{before:.1%}", f"{metrics[name]:.1%}")
    return table
