"""`batch`: many independent edits from a JSON or JSONL file, with a report."""

from __future__ import annotations

import argparse
import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.cli.journal import ROWS, Journal, journal, require_journal_folder
from editors.cli.options import (
    add_base_model_options,
    add_device_option,
    add_output_option,
    chosen_base_model,
    require_device,
    warn_of_bare_edits,
    warn_of_contradictions,
    whole_number,
)
from editors.common.exit_codes import ExitCode
from editors.common.files import replacing, save_json
from editors.common.hashing import file_hash
from editors.scoring.names import before_edit, is_after_edit
from editors.serving.batch import GENERALITY, LOCALITY, RELIABILITY, BatchEditor, DoneRow
from editors.texts.request_files import BadRow, RequestRow, read_request_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPORT, _TABLE, _EDITS = "report.json", "rows.csv", "edits"
_SCORES = (RELIABILITY, before_edit(RELIABILITY), GENERALITY, before_edit(GENERALITY), LOCALITY)


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("batch", help="many independent edits from a file, with a report")
    parser.add_argument("artifact", help="folder of an exported editor")
    parser.add_argument("requests", help=".jsonl file with a request in each line, or .json file with a list")
    add_output_option(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the batch in the output folder, if one was begun there"
    )
    parser.add_argument("--save-edits", action="store_true", help="also write each edit, to edits/ROW.safetensors")
    size = "edits made and scored together, at most (default: %(default)s)"
    parser.add_argument("--batch-size", type=whole_number, default=16, help=size)
    add_base_model_options(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Make the edits. A row is on disk before the next batch begins, so what was done survives whatever happens."""
    output, requests = Path(options.output), Path(options.requests)
    require_journal_folder(output, resume=options.resume)
    require_device(options.device)
    editor = load_editor(options.artifact).to(options.device)
    forms = Counter(_form(row) for row in read_request_rows(requests))
    warn_of_contradictions(read_request_rows(requests), "Each edit is made alone, so all of them are made", console)
    with journal(output, _facts(options), resume=options.resume) as lines:
        summary = _Summary(lines.read())
        if summary.rows < forms.total():
            batch, tokenizer = _batch_editor(options, editor)
            if forms["bare"] and not forms["chat"]:
                warn_of_bare_edits(editor, tokenizer, 'a row the field "form": "chat"', console)
            for line in _new_lines(options, batch, lines, forms.total()):
                summary.add(line)
        _save_table(lines.read(), output / _TABLE)
    save_json(summary.report(editor, requests), output / _REPORT)
    summary.show(console, output)
    return ExitCode.SOME_BAD if summary.bad else ExitCode.DONE


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same when a batch is resumed."""
    return {
        "editor": file_hash(Path(options.artifact) / "model.safetensors"),
        "requests": file_hash(Path(options.requests)),
        "save_edits": options.save_edits,
    }


def _form(row: RequestRow | BadRow) -> str:
    """The form of a row's request; "none" if there is none."""
    return row.request.form if isinstance(row, RequestRow) else "none"


def _batch_editor(options: argparse.Namespace, editor: LoadedEditor) -> tuple[BatchEditor, PreTrainedTokenizerBase]:
    """What makes the edits, and the base model's tokenizer."""
    source = chosen_base_model(options, editor.base_model)
    model, tokenizer = load_base_model(source).to(options.device), load_tokenizer(source)
    return BatchEditor(editor, model, tokenizer, options.batch_size), tokenizer


def _new_lines(options: argparse.Namespace, batch: BatchEditor, lines: Journal, total: int) -> Iterator[dict[str, Any]]:
    """Make the edits of the rows that the journal does not have, and write their lines."""
    done = set(lines.rows)
    rows = (row for row in read_request_rows(options.requests) if row.number not in done)
    with _progress(len(done), total) as progress:
        for result in batch.run(rows):
            # The edit first: a row with a line is a row with everything.
            if isinstance(result, DoneRow) and options.save_edits:
                result.edit.save(Path(options.output) / _EDITS / f"{result.number}.safetensors")
            line = _line(result)
            lines.write(line)
            progress.advance(progress.task_ids[0])
            yield line


def _progress(done: int, total: int) -> Progress:
    progress = Progress(
        TextColumn("editing"), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )
    progress.add_task("editing", total=total, completed=done)
    return progress


def _line(result: DoneRow | BadRow) -> dict[str, Any]:
    """What `rows.jsonl` says about a row."""
    if isinstance(result, BadRow):
        return {"row": result.number, "status": "bad", "error": result.error}
    (request,) = result.edit.metadata["requests"]
    facts = {"row": result.number, "status": "done", **request}
    return {**facts, "scores": result.scores, "seconds": round(result.seconds, 6)}


def _save_table(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """The rows as a table for spreadsheets, all or nothing."""
    columns = ["row", "status", "prompt", "target", *_SCORES, "seconds", "error"]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows({**line, **line.get("scores", {})} for line in lines)


class _Summary:
    """Means over all rows.

    Args:
        lines: what the journal has already.
    """

    def __init__(self, lines: Iterable[dict[str, Any]]) -> None:
        self.bad: list[dict[str, Any]] = []
        self._done = 0
        self._chats = 0
        self._already = 0
        self._seconds = 0.0
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for line in lines:
            self.add(line)

    @property
    def rows(self) -> int:
        """How many there are so far."""
        return self._done + len(self.bad)

    def add(self, line: dict[str, Any]) -> None:
        """Count a row."""
        if line["status"] == "bad":
            self.bad.append({"row": line["row"], "error": line["error"]})
            return
        self._done += 1
        self._chats += line.get("form") == "chat"
        self._already += line["scores"].get(before_edit(RELIABILITY)) == 1
        self._seconds += line["seconds"]
        for name, value in line["scores"].items():
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
            "rows": self.rows,
            "done": self._done,
            **({"chat_form": self._chats} if self._chats else {}),
            "said_before": self._already,
            "bad": self.bad,
            "metrics": self._means(),
            "seconds_per_edit": self._seconds / self._done if self._done else None,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def show(self, console: Console, output: Path) -> None:
        """Print the means and the first bad rows."""
        form = f", {self._chats} of them in chat form" if self._chats else ""
        table = Table("metric", "before, %", "after, %", title=Text(f"{self._done} edit(s), each made alone{form}"))
        means = self._means()
        for name in filter(is_after_edit, means):
            before = means.get(before_edit(name))
            table.add_row(name, "" if before is None else f"{100 * before:.1f}", f"{100 * means[name]:.1f}")
        if means:
            console.print(table)
        if self._done:
            console.print(f"{1000 * self._seconds / self._done:.1f} ms for an edit")
        if self._already:
            line = f"{self._already} of {self._done} edit(s) ask for what the base model says without them"
            console.print(Text(line, style="yellow"))
        for row in self.bad[:10]:
            console.print(Text(f"row {row['row']}: {row['error']}", style="red"))
        console.print(Text(f"{self._done} done, {len(self.bad)} bad; all rows are in {output / ROWS}"))
