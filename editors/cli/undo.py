"""`undo`: the base model of a merged model again."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.text import Text

from editors.artifacts.merged import undo_merged
from editors.cli.options import add_output_option


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("undo", help="the base model of a merged model, bit for bit as it was")
    parser.add_argument("merged", help="folder written by convert --to merged")
    add_output_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the base model."""
    undo_merged(options.merged, options.output)
    console.print(Text(f"Base model written to {options.output}"))
    return 0
