"""`ExampleTable`: what the model says before and after some held-out edits, in plain text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.base import EditDataModule
from datamodules.records import EditRecord
from editors.common.files import save_json
from editors.edits.protocol import Edit
from editors.lm.ask import ask
from editors.training.module import Editor

_LOG = logging.getLogger(__name__)


class ExampleTable(Callback):
    """Shows a table of answers before and after an edit, at the end of training and of test.

    Args:
        count: how many held-out records to show.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show edits of validation records."""
        self._show("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show edits of test records."""
        self._show("test", trainer, pl_module)

    def _show(self, split: str, trainer: Trainer, editor: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, EditDataModule) or not isinstance(editor, Editor):
            _LOG.info("ExampleTable shows records of an EditDataModule only; there is none.")
            return
        records = data.records.get(split, [])
        chosen = [records[i * len(records) // self.count] for i in range(min(self.count, len(records)))]
        # On every process, though one shows them: where the base model is sharded, all must run the same passes.
        rows = [row for record in chosen for row in example_rows(editor, record)]
        if not rows or not trainer.is_global_zero:
            return
        Console().print(example_table(rows, f"{split} examples: answers before and after a single edit"))
        save_json(rows, Path(trainer.default_root_dir) / "results" / "examples.json")


def example_rows(editor: Editor, record: EditRecord) -> list[dict[str, str]]:
    """Edit one record and ask its prompt, a paraphrase and an untouched neighbour, before and after."""
    questions = [("edit", record.prompt)]
    questions += [("paraphrase", text) for text in record.rephrases[:1]]
    questions += [("neighbour", probe.prompt) for probe in record.locality[:1]]
    prompts = [prompt for _, prompt in questions]
    model, tokenizer = editor.lm.model, editor.tokenizer
    edit = _edit(editor, record)
    before = ask(model, tokenizer, prompts)
    with edit.applied(model):
        after = ask(model, tokenizer, prompts)
    fact = f"{record.prompt} → {record.target_new}"
    return [
        {"edit": fact, "kind": kind, "question": prompt, "before": old, "after": new}
        for (kind, prompt), old, new in zip(questions, before, after, strict=True)
    ]


@torch.no_grad()
def _edit(editor: Editor, record: EditRecord) -> Edit:
    training = editor.training
    editor.eval()
    edit = editor.network.make(editor.lm, editor.lm.read([[record.request()]]))
    editor.train(training)
    return edit


def example_table(rows: Sequence[dict[str, str]], title: str) -> Table:
    """Each request with the answers to its questions."""
    table = Table(title=title)
    for heading in ("kind", "question", "before", "after"):
        table.add_column(heading)
    last = None
    for row in rows:
        if row["edit"] != last:
            table.add_section()
            table.add_row(Text("request", "bold"), Text(row["edit"], "bold"), "", "")
            last = row["edit"]
        # As `Text`: a model that says "[/INST]" must not be read as markup.
        table.add_row(*(Text(row[key]) for key in ("kind", "question", "before", "after")))
    return table
