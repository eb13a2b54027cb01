"""`WriteReport`: the report card of an editor, when it was tested, or trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.text import Text

from datamodules.base import EditDataModule
from datamodules.report_cases import report_cases
from editors.common.errors import EditorError
from editors.scoring.report.files import PAGE, save_report
from editors.scoring.report.making import make_report
from editors.scoring.report.table import report_table
from editors.training.module import Editor

_LOG = logging.getLogger(__name__)


class WriteReport(Callback):
    """Asks the edited model what its users ask, near and far from the edit, and writes what it says.

    Metrics of a data set say how its own questions are answered, teacher-forced. The report card says what is answered
    freely: `results/report.json` and `results/report.html` in the run's folder, and a table.

    Args:
        count: test (or validation) records whose edits are reported on, spread evenly; 0 for no report.
        together: how many of these edits are also made together, as one.
        after_fit: report on validation records too, when training has ended.

    Raises:
        EditorError: `count` is below 0.
    """

    def __init__(self, count: int = 32, together: Sequence[int] = (1, 10), *, after_fit: bool = False) -> None:
        if count < 0:
            raise EditorError(f"WriteReport.count must be at least 0, got {count}")
        self.count, self.together, self.after_fit = count, tuple(together), after_fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the running texts before a test, not after it: a file may be missing."""
        data = getattr(trainer, "datamodule", None)
        if (stage == "test" or (stage == "fit" and self.after_fit)) and isinstance(data, EditDataModule):
            data.texts()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report on edits of test records."""
        self._report(trainer, pl_module, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report on edits of validation records, if asked to."""
        if self.after_fit:
            self._report(trainer, pl_module, "val")

    def _report(self, trainer: Trainer, pl_module: LightningModule, split: Literal["val", "test"]) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, EditDataModule) or not isinstance(pl_module, Editor):
            _LOG.info("WriteReport reports on records of an EditDataModule only; there is none.")
            return
        cases = report_cases(data.records.get(split, []), self.count)
        if not cases:
            return
        # On every process, though one writes: where the base model is sharded, all must run the same passes.
        rank_zero_info(f"Report card of {len(cases)} edits: some seconds each on a CPU")
        training = pl_module.training
        pl_module.eval()
        try:
            card = make_report(pl_module.lm, pl_module.network, cases, texts=data.texts(), together=self.together)
        finally:
            pl_module.train(training)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "results"
            folder.mkdir(parents=True, exist_ok=True)
            card = replace(card, method=pl_module.registered_name, model=pl_module.base_model.name)
            save_report(card, folder)
            console = Console()
            console.print(report_table(card))
            console.print(Text(f"Answers word for word: {folder / PAGE}"))
