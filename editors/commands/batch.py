"""`batch`: many independent edits from a JSON or JSONL file, with a report."""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from editors.base_model import load_base_model, load_tokenizer
from editors.batch import BatchEditor, DoneRow
from editors.commands.options import (
    add_base_model_options,
    add_device_option,
    add_output_option,
    chosen_base_model,
    require_device,
)
from editors.errors import ArtifactError
from editors.export.artifact import LoadedEditor, load_editor
from editors.files import require_new_folder, save_json
from editors.hashing import file_hash
from editors.request_files import BadRow, read_request_rows

SOME_BAD = 3
_ROWS, _REPORT, _EDITS = "rows.jsonl", "report.json", "edits"


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("batch", help="many independent edits from a file, with a report")
    parser.add_argument("artifact", help="folder of an exported editor")
    parser.add_argument("requests", help=".jsonl file with a request in each line, or .json file with a list")
    add_output_option(parser)
    parser.add_argument("--save-edits", action="store_true", help="also write each edit, to edits/ROW.safetensors")
    parser.add_argument("--batch-size", type=_batch_size, default=16, help="edits made at once (default: %(default)s)")
    add_base_model_options(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Make the edits. A row is on disk before the next batch begins, so what was done survives whatever happens."""
    output = Path(options.output)
    require_new_folder(output)
    require_device(options.device)
    editor = load_editor(options.artifact).to(options.device)
    total = sum(1 for _ in read_request_rows(options.requests))
    source = chosen_base_model(options, editor.base_model)
    model = load_base_model(source).to(options.device)
    batch = BatchEditor(editor, model, load_tokenizer(source), options.batch_size)
    summary = _Summary()
    output.mkdir(parents=True, exist_ok=True)
    with _created(output / _ROWS) as file, _progress(total) as progress:
        for result in batch.run(read_request_rows(options.requests)):
            if isinstance(result, DoneRow) and options.save_edits:
                result.edit.save(output / _EDITS / f"{result.number}.safetensors")
            file.write(json.dumps(_line(result), ensure_ascii=False) + "\n")
            file.flush()
            summary.add(result)
            progress.advance(progress.task_ids[0])
        os.fsync(file.fileno())
    save_json(summary.report(editor, Path(options.requests)), output / _REPORT)
    summary.show(console, output)
    return SOME_BAD if summary.bad else 0


def _batch_size(text: str) -> int:
    """The value of `--batch-size`: wrong usage is told before a model is loaded."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _created(path: Path) -> IO[str]:
    """A new file; where another process made it a moment ago, that one goes on alone."""
    try:
        return path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise ArtifactError(f"{path} is being written by another process; name another folder") from error


def _progress(total: int) -> Progress:
    progress = Progress(
        TextColumn("editing"), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    progress.add_task("editing", total=total)
    return progress


def _line(result: DoneRow | BadRow) -> dict[str, Any]:
    """What `rows.jsonl` says about a row."""
    if isinstance(result, BadRow):
        return {"row": result.number, "status": "bad", "error": result.error}
    (request,) = result.edit.metadata["requests"]
    facts = {"row": result.number, "status": "done", **request}
    return {**facts, "scores": result.scores, "seconds": round(result.seconds, 6)}


class _Summary:
    """Means over all rows."""

    def __init__(self) -> None:
        self.bad: list[BadRow] = []
        self._done = 0
        self._seconds = 0.0
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, result: DoneRow | BadRow) -> None:
        """Count a row."""
        if isinstance(result, BadRow):
            self.bad.append(result)
            return
        self._done += 1
        self._seconds += result.seconds
        for name, value in result.scores.items():
            self._sums[name][0] += value
            self._sums[name][1] += 1

    def _means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in sorted(self._sums.items())}

    def report(self, editor: LoadedEditor, requests: Path) -> dict[str, Any]:
        """What `report.json` says."""
        return {
            "editor": editor.config.editor,
            "base_model": editor.config.base_model,
            "base_weights": editor.config.base_weights,
            "requests": {"file": requests.name, "sha256": file_hash(requests)},
            "rows": self._done + len(self.bad),
            "done": self._done,
            "bad": [{"row": row.number, "error": row.error} for row in self.bad],
            "metrics": self._means(),
            "seconds_per_edit": self._seconds / self._done if self._done else None,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def show(self, console: Console, output: Path) -> None:
        """Print the means and the first bad rows."""
        table = Table("metric", "before, %", "after, %", title=Text(f"{self._done} edit(s), each made alone"))
        means = self._means()
        for name, value in means.items():
            if not name.startswith("before/"):
                before = means.get(f"before/{name}")
                table.add_row(name, "" if before is None else f"{100 * before:.1f}", f"{100 * value:.1f}")
        if means:
            console.print(table)
        if self._done:
            console.print(f"{1000 * self._seconds / self._done:.1f} ms for an edit")
        for row in self.bad[:10]:
            console.print(Text(f"row {row.number}: {row.error}", style="red"))
        console.print(Text(f"{self._done} done, {len(self.bad)} bad; all rows are in {output / _ROWS}"))
