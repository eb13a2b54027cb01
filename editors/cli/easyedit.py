"""`export` and `import`: a trained editor to EasyEdit, and an archive that EasyEdit trained from there."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.text import Text

from editors.artifacts.easyedit.exchange import import_easyedit, read_settings, save_easyedit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.artifacts.merged import save_merged
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.cli.options import add_base_model_options, add_output_option, chosen_base_model
from editors.common.errors import UsageError
from editors.common.files import require_new_folder
from editors.edits.composing import low_rank
from editors.texts.requests import EditRequest


def add(commands: Any) -> None:
    """Add both commands."""
    export = commands.add_parser("export", help="a trained editor as an archive for EasyEdit")
    export.add_argument("artifact", help="folder of an exported editor")
    add_output_option(export)
    export.add_argument("--model-name", help="the base model for EasyEdit: folder or Hub id (default: where it is now)")
    for name, meaning in (("--prompt", "question"), ("--target", "new answer")):
        export.add_argument(name, help=f"{meaning} of the one edit that is written, for KE only: EasyEdit has no KE")
    add_base_model_options(export)
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
    for part in ("encoder", "counterfactual"):
        importing.add_argument(f"--{part}", help=f"where SERAC's {part} model is now (default: as in the YAML file)")
    add_base_model_options(importing)
    importing.set_defaults(run=run_import)


def run_export(options: argparse.Namespace, console: Console) -> int:
    """Write the archive; of KE, which EasyEdit does not have, a model with one edit in it.

    Raises:
        UsageError: an edit is given for an editor that EasyEdit has, or half an edit.
    """
    require_new_folder(options.output)
    editor = load_editor(options.artifact)
    edit = (options.prompt, options.target)
    if edit != (None, None):
        if None in edit:
            raise UsageError("an edit needs both --prompt and --target")
        _write_model(options, editor, EditRequest(*edit), console)
        return 0
    save_easyedit(options.output, editor, options.model_name, chosen_base_model(options, editor.base_model))
    console.print(Text(f"Archive for EasyEdit written to {options.output}; README.md there says how to use it"))
    return 0


def _write_model(options: argparse.Namespace, editor: LoadedEditor, request: EditRequest, console: Console) -> None:
    """Write the base model with one edit of KE in its weights."""
    if editor.config.editor != "ke":
        raise UsageError(
            f"--prompt and --target are for KE: EasyEdit makes the edits of {editor.config.editor!r} itself, from the "
            "archive. For an edited model use apply --save, then convert --to merged"
        )
    base = chosen_base_model(options, editor.base_model)
    edit = editor.edit(load_base_model(base), load_tokenizer(base), [request])
    save_merged(options.output, low_rank(edit), base)
    console.print(
        Text(
            "EasyEdit has had no KE since August 2023: what was written is no archive, but the base model with this "
            f"one edit in its weights, in the layout of transformers, to {options.output}"
        )
    )


def run_import(options: argparse.Namespace, console: Console) -> int:
    """Write the artifact."""
    named = BaseModelConfig(read_settings(options.hparams).model_name, dtype=options.dtype)
    base = chosen_base_model(options, named)
    import_easyedit(options.output, options.archive, options.hparams, base, options.encoder, options.counterfactual)
    console.print(Text(f"Artifact written to {options.output}"))
    return 0
