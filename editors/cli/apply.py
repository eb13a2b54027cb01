"""`apply`: make one edit and show answers before and after."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.cli.options import (
    add_base_model_options,
    add_device_option,
    add_overwrite_option,
    chosen_base_model,
    require_device,
    warn_of_bare_edits,
)
from editors.common.files import require_new_file
from editors.lm.ask import ask, require_room
from editors.texts.forms import FORMS, Form
from editors.texts.requests import EditRequest, about, require_text


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("apply", help="make one edit and show answers before and after")
    parser.add_argument("artifact", help="folder of an exported editor")
    prompt = "the question whose answer has to change; {} in it stands for the subject"
    parser.add_argument("--prompt", required=True, help=prompt)
    parser.add_argument("--target", required=True, help="the new answer")
    for name in ("subject", "relation"):
        parser.add_argument(f"--{name}", help=f"the fact's {name}, kept with the edit: compose tells conflicts by them")
    parser.add_argument("--ask", action="append", default=[], help="another question to show; may be repeated")
    chat = "likewise, in the model's chat template whatever the form of the edit"
    parser.add_argument("--ask-chat", action="append", default=[], metavar="QUESTION", help=chat)
    form = "what the model reads: the bare prompt and questions, or each in its chat template (default: %(default)s)"
    parser.add_argument("--form", choices=FORMS, default="bare", help=form)
    add_base_model_options(parser)
    add_device_option(parser)
    parser.add_argument("--save", help="write the edit to this .safetensors file")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Make the edit."""
    if options.save:
        inputs = (options.artifact, options.model)
        require_new_file(options.save, overwrite=options.overwrite, inputs=inputs)
    request = EditRequest(options.prompt, options.target, options.subject, options.relation, options.form)
    for question in options.ask:
        require_text(question, "--ask")
    for question in options.ask_chat:
        require_text(question, "--ask-chat")
    require_device(options.device)
    editor = load_editor(options.artifact).to(options.device)
    source = chosen_base_model(options, editor.base_model)
    model = load_base_model(source).to(options.device)
    tokenizer = load_tokenizer(source)
    if request.form == "bare":
        warn_of_bare_edits(editor, tokenizer, "--form chat", console)
    asked = _asked(request, options)
    for form, prompts in asked:
        require_room(model, tokenizer, prompts, form)
    before = [ask(model, tokenizer, prompts, form=form) for form, prompts in asked]
    edit = editor.edit(model, tokenizer, [request])
    with edit.applied(model):
        after = [ask(model, tokenizer, prompts, form=form) for form, prompts in asked]
    table = _table(request)
    for (form, prompts), *answers in zip(asked, before, after, strict=True):
        _add_rows(table, "" if form == request.form else f"[{form}] ", zip(prompts, *answers, strict=True))
    console.print(table)
    if options.save:
        edit.save(options.save)
        console.print(Text(f"Edit written to {options.save}"))
    return 0


def _asked(request: EditRequest, options: argparse.Namespace) -> list[tuple[Form, list[str]]]:
    """The questions in each form: those in the edit's, its own first, and those in the chat template."""
    own, chat = ([about(text, request.subject) for text in texts] for texts in (options.ask, options.ask_chat))
    in_chat: list[tuple[Form, list[str]]] = [("chat", chat)] if chat else []
    return [(request.form, [request.prompt, *own]), *in_chat]


def _table(request: EditRequest) -> Table:
    """For questions with their answers before and after the edit."""
    # As `Text`: what users and models say ("[/INST]") must not be read as markup.
    title = Text(f"Edit in {request.form} form: {request.prompt} → {request.target}")
    table = Table(title=title, show_lines=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading)
    return table


def _add_rows(table: Table, mark: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Add questions with their answers, a mark before each question."""
    for question, before, after in rows:
        table.add_row(Text(f"{mark}{question}"), Text(before), Text(after))
