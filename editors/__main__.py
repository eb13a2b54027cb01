"""`python -m editors apply ARTIFACT --prompt … --target … --ask …`: make one edit and show answers before and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from editors.answers import ask
from editors.base_model import load_base_model, load_tokenizer
from editors.errors import EditorError
from editors.export.artifact import load_editor
from editors.requests import EditRequest


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m editors", description="Use a trained editor.")
    apply = parser.add_subparsers(dest="command", required=True).add_parser(
        "apply", help="make one edit and show answers before and after"
    )
    apply.add_argument("artifact", help="folder of an exported editor")
    apply.add_argument("--prompt", required=True, help="the question whose answer has to change")
    apply.add_argument("--target", required=True, help="the new answer")
    apply.add_argument("--ask", action="append", default=[], help="another question to show; may be repeated")
    apply.add_argument("--model", help="where the base model is now: Hub id, folder or .gguf (default: as in training)")
    apply.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code that comes with the base model's repository (default: never, whatever the artifact says)",
    )
    apply.add_argument("--device", default="cpu", help="device to compute on (default: %(default)s)")
    apply.add_argument("--save", help="write the edit to this .safetensors file")
    return parser


def _apply(options: argparse.Namespace, console: Console) -> None:
    editor = load_editor(options.artifact).to(options.device)
    request = EditRequest(options.prompt, options.target)
    source = replace(
        editor.base_model,
        name=options.model or editor.base_model.name,
        trust_remote_code=options.trust_remote_code,
    )
    model = load_base_model(source).to(options.device)
    tokenizer = load_tokenizer(source)
    prompts = [options.prompt, *options.ask]
    before = ask(model, tokenizer, prompts)
    edit = editor.edit(model, tokenizer, [request])
    with edit.applied(model):
        after = ask(model, tokenizer, prompts)
    # As `Text`: what users and models say ("[/INST]") must not be read as markup.
    table = Table(title=Text(f"Edit: {request.prompt} → {request.target}"), show_lines=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading)
    for row in zip(prompts, before, after, strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    if options.save:
        edit.save(options.save)
        console.print(Text(f"Edit written to {options.save}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, or 2 where the user has to mend something."""
    options = _parser().parse_args(arguments)
    try:
        _apply(options, Console())
    except EditorError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
