"""The command line: which commands there are, and how errors become exit codes.

What exit codes mean is said in `editors.common.exit_codes`; argparse itself ends with 2. Only the command that is asked
for is imported: its libraries take seconds to load, which whoever reads the list of commands need not wait for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from importlib import import_module

from editors.common.errors import EditorError
from editors.common.exit_codes import ExitCode
from editors.common.quiet import hide_bars, quiet_models

# What each command does, as its module in this folder says too. `export` and `import` are in one.
COMMANDS = {
    "apply": "make one edit and show answers before and after",
    "batch": "many independent edits from a file, with a report",
    "report": "how an edited model answers: near the edit, far from it, in chat form",
    "compose": "several saved edits as one",
    "convert": "saved edits as LoRA adapters or as a merged model",
    "undo": "the base model of a merged model, bit for bit as it was",
    "inspect": "what a file or folder is, what it needs, and its card",
    "export": "a trained editor as an archive for EasyEdit",
    "import": "an archive that EasyEdit trained as an artifact",
}
_MODULES = {"export": "easyedit", "import": "easyedit"}


def build_parser(wanted: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The parser of all commands; each leaves its function in `run`.

    Args:
        wanted: the commands that are parsed; of the others only their names are known, and what they do.
    """
    parser = argparse.ArgumentParser("python -m editors", description="Use a trained editor, and its edits.")
    commands = parser.add_subparsers(dest="command", required=True)
    needed = {_MODULES.get(command, command) for command in wanted}
    for command, does in COMMANDS.items():
        module = _MODULES.get(command, command)
        if module not in needed:
            commands.add_parser(command, help=does)
        elif command not in commands.choices:
            import_module(f"editors.cli.{module}").add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: the process's). Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    hide_bars()
    options = build_parser(given[:1]).parse_args(given)
    quiet_models()
    from rich.console import Console  # noqa: PLC0415 - the list of commands needs no colours
    from rich.text import Text  # noqa: PLC0415

    try:
        code: int = options.run(options, Console())
    except (EditorError, OSError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        return ExitCode.of(error)
    return code
