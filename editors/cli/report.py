"""`report`: what a user meets who asks an edited model, as a page, a table and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from editors.artifacts.edit_files import load_edit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import load_base_model, load_tokenizer, weights_hash
from editors.cli.options import (
    add_base_model_options,
    add_device_option,
    add_output_option,
    chosen_base_model,
    require_device,
    warn_of_contradictions,
    whole_number,
)
from editors.common.errors import EditorError, UsageError
from editors.common.exit_codes import ExitCode
from editors.common.files import new_folder, require_new_folder
from editors.edits.manifest import EditManifest
from editors.lm.frozen import FrozenLM
from editors.scoring.report.abilities import Tasks
from editors.scoring.report.card import ReportCard
from editors.scoring.report.cases import ReportCase
from editors.scoring.report.files import JSON, PAGE, save_report
from editors.scoring.report.making import Progress, report_of_edit
from editors.scoring.report.table import abilities_table, report_table
from editors.serving.reports import report_on_rows, require_usable
from editors.texts.plain_texts import read_running_texts
from editors.texts.request_files import read_request_rows

Texts = Mapping[str, Sequence[str]]


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("report", help="how an edited model answers: near the edit, far from it, in chat form")
    parser.add_argument("artifact", nargs="?", help="folder of an exported editor; with --edit only where it needs one")
    parser.add_argument("--data", help=".jsonl file with a request in each line, or .json file with a list")
    parser.add_argument("--edit", help="report on this saved edit, in place of edits made from --data")
    add_output_option(parser)
    parser.add_argument("--limit", type=whole_number, help="use only so many rows of --data, the first ones")
    texts = "for the perplexity of running text; may be repeated: "
    texts += "ME-PPL JSON, a JSON list of texts, or a .txt with a paragraph in each line"
    parser.add_argument("--texts", action="append", default=[], metavar="FILE", help=texts)
    _add_task_options(parser)
    numbers = "make so many edits of --data together, as one, too (default: %(default)s)"
    parser.add_argument("--together", type=_numbers, default="1,10,100", metavar="N,N,…", help=numbers)
    size = "edits made together, at most (default: %(default)s)"
    parser.add_argument("--batch-size", type=whole_number, default=16, help=size)
    parser.add_argument("--seed", type=int, default=0, help="of placebos and intervals (default: %(default)s)")
    add_base_model_options(parser)
    add_device_option(parser)
    parser.set_defaults(run=run)


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add what lm-evaluation-harness is asked."""
    tasks = "tasks of lm-evaluation-harness for general ability before and after the first edit (extra `abilities`)"
    parser.add_argument("--tasks", type=_names, metavar="NAME,…", help=tasks)
    folder = "folder with task files of your own; they may hold Python code, which is run"
    parser.add_argument("--task-folder", metavar="DIR", help=folder)
    parser.add_argument("--task-limit", type=whole_number, metavar="N", help="examples of each task, at most")


def _names(text: str) -> tuple[str, ...]:
    """The value of `--tasks`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"must be names of tasks with commas between them, got {text!r}")
    return names


def _tasks(options: argparse.Namespace) -> Tasks | None:
    """The tasks that the options name."""
    if options.tasks is not None:
        return Tasks(options.tasks, options.task_folder, options.task_limit)
    if options.task_folder is not None or options.task_limit is not None:
        raise UsageError("--task-folder and --task-limit are about --tasks, which names the tasks to run; add it")
    return None


def _numbers(text: str) -> tuple[int, ...]:
    """The value of `--together`."""
    return tuple(whole_number(part.strip()) for part in text.split(",") if part.strip())


def run(options: argparse.Namespace, console: Console) -> int:
    """Make the report card."""
    require_new_folder(options.output)
    require_device(options.device)
    if (options.data is None) == (options.edit is None):
        raise UsageError("report needs either --data (edits to make) or --edit (a saved edit)")
    if options.edit is None and options.artifact is None:
        raise UsageError("report --data needs the folder of an exported editor, which makes the edits")
    texts = read_running_texts(options.texts)
    tasks = _tasks(options)
    editor = None if options.artifact is None else load_editor(options.artifact).to(options.device)
    if options.edit is not None:
        card = _report_on_edit(options, editor, texts, tasks)
    else:
        assert editor is not None
        card = _report_on_editor(options, editor, texts, tasks, console)
    with new_folder(options.output) as folder:
        save_report(card, folder)
    console.print(report_table(card))
    if card.abilities:
        console.print(abilities_table(card))
    for row in card.bad[:10]:
        console.print(Text(f"row {row['row']}: {row['error']}", style="red"))
    console.print(Text(f"Page with examples: {Path(options.output) / PAGE}; all numbers: {JSON} beside it"))
    return ExitCode.SOME_BAD if card.bad else ExitCode.DONE


def _report_on_editor(
    options: argparse.Namespace, editor: LoadedEditor, texts: Texts, tasks: Tasks | None, console: Console
) -> ReportCard:
    """The card of an editor on the rows of a file."""
    rows = list(islice(read_request_rows(options.data), options.limit))
    require_usable(rows, options.data)
    warn_of_contradictions(rows, "Made together they cannot hold", console)
    source = chosen_base_model(options, editor.base_model)
    model = load_base_model(source).to(options.device)
    editor.check_base_model(model)
    lm = editor.freeze(model, load_tokenizer(source))
    with told_progress() as tell:
        card = report_on_rows(
            lm,
            editor,
            rows,
            texts=texts,
            tasks=tasks,
            together=options.together,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=tell,
        )
    return replace(card, model=source.name)


def _report_on_edit(
    options: argparse.Namespace, editor: LoadedEditor | None, texts: Texts, tasks: Tasks | None
) -> ReportCard:
    """The card of a saved edit on its own requests."""
    # A memory is read with its editor's networks and the base model's tokenizer.
    tokenizer = None if editor is None else load_tokenizer(chosen_base_model(options, editor.base_model))
    edit = load_edit(options.edit, editor, tokenizer).to(options.device)
    if edit.num_episodes != 1:
        raise EditorError(f"{options.edit} holds {edit.num_episodes} independent edits; a report is on one")
    manifest = EditManifest.of_metadata(edit.metadata, list(edit.weight_updates or ()))
    requests = manifest.requests()
    source = chosen_base_model(options, manifest.base)
    model = load_base_model(source).to(options.device)
    manifest.require_weights(weights_hash(model, torch.bfloat16), source)
    sites = list(edit.weight_updates) if edit.weight_updates is not None else None
    lm = FrozenLM(replace(source, sites=sites), model, tokenizer or load_tokenizer(source))
    with told_progress() as tell:
        card = report_of_edit(
            lm,
            edit,
            [ReportCase(request) for request in requests],
            texts=texts,
            tasks=tasks,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=tell,
        )
    return replace(card, model=source.name)


@contextmanager
def told_progress() -> Iterator[Progress]:
    """A bar on the terminal for each part of a report."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield tell
