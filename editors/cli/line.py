"""The command line: which commands there are, and how errors become exit codes.

What exit codes mean is said in `editors.common.exit_codes`; argparse itself ends with 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from editors.cli import apply, batch, compose, convert, easyedit, inspect, report, undo
from editors.common.errors import EditorError
from editors.common.exit_codes import ExitCode

_COMMANDS = (apply, batch, report, compose, convert, undo, inspect, easyedit)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each leaves its function in `run`."""
    parser = argparse.ArgumentParser("python -m editors", description="Use a trained editor, and its edits.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: the process's). Returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.run(options, Console())
    except (EditorError, OSError) as error:
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        return ExitCode.of(error)
    return code
