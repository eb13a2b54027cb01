"""`compose`: several saved edits as one; conflicting ones are reported."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.text import Text

from editors.artifacts.edit_files import load_edit
from editors.cli.options import add_overwrite_option
from editors.common.errors import EditorError
from editors.common.files import require_new_file
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from editors.texts.conflicts import find_conflicts


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("compose", help="several saved edits as one")
    parser.add_argument("edits", nargs="+", metavar="edit", help=".safetensors files written by apply or batch")
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--allow-conflicts", action="store_true", help="also if one question gets different answers (default: refuse)"
    )
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Compose the edits.

    Raises:
        EditorError: they contradict each other, are for different base models, or the output exists already.
    """
    require_new_file(options.output, overwrite=options.overwrite, inputs=options.edits)
    edits = [low_rank(load_edit(path)) for path in options.edits]
    for edit in edits:
        edit.require_single("compose")
    composed = LowRankEdit.compose(edits)
    requests = EditManifest.of(composed).requests()
    conflicts = find_conflicts(requests)
    if conflicts and not options.allow_conflicts:
        raise EditorError(
            f"{len(conflicts)} question(s) get different answers: {'; '.join(map(str, conflicts))}. "
            "Leave edits out, or give --allow-conflicts"
        )
    for conflict in conflicts:
        console.print(Text(f"conflict: {conflict}", style="yellow"))
    composed.save(options.output)
    console.print(Text(f"{len(requests)} request(s) in {options.output}"))
    return 0
