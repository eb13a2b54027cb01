"""`export` and `import`: a trained editor to EasyEdit, and an archive that EasyEdit trained from there."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.text import Text

from editors.base_model import BaseModelConfig
from editors.commands.options import add_base_model_options, add_output_option, chosen_base_model
from editors.export.artifact import load_editor
from editors.export.easyedit import import_easyedit, save_easyedit
from editors.export.easyedit_hparams import read_hparams


def add(commands: Any) -> None:
    """Add both commands."""
    export = commands.add_parser("export", help="a trained editor as an archive for EasyEdit")
    export.add_argument("artifact", help="folder of an exported editor")
    add_output_option(export)
    export.add_argument("--model-name", help="the base model for EasyEdit: folder or Hub id (default: as in training)")
    export.set_defaults(run=run_export)
    importing = commands.add_parser("import", help="an archive that EasyEdit trained as an artifact")
    importing.add_argument("archive", help="file that EasyEdit's trainer wrote; nothing in it is executed")
    importing.add_argument("--hparams", required=True, help="the YAML file that it was trained or is applied with")
    add_output_option(importing)
    importing.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type to load the base model in (default: as stored)",
    )
    add_base_model_options(importing)
    importing.set_defaults(run=run_import)


def run_export(options: argparse.Namespace, console: Console) -> int:
    """Write the archive."""
    save_easyedit(options.output, load_editor(options.artifact), options.model_name)
    console.print(Text(f"Archive for EasyEdit written to {options.output}; README.md there says how to use it"))
    return 0


def run_import(options: argparse.Namespace, console: Console) -> int:
    """Write the artifact."""
    named = BaseModelConfig(read_hparams(options.hparams).model_name, dtype=options.dtype)
    import_easyedit(options.output, options.archive, options.hparams, chosen_base_model(options, named))
    console.print(Text(f"Artifact written to {options.output}"))
    return 0
