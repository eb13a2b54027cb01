"""`convert`: a saved edit as a LoRA adapter or as a merged model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from editors.artifacts.edit_files import load_edit
from editors.artifacts.lora import save_lora
from editors.artifacts.merged import save_merged
from editors.artifacts.truncation import logit_error, truncate, truncation_error
from editors.base_models.loading import (
    BaseModelConfig,
    load_base_model,
    load_skeleton,
    load_tokenizer,
    weights_hash,
)
from editors.cli.options import add_base_model_options, add_output_option, chosen_base_model, whole_number
from editors.common.errors import UsageError
from editors.common.files import require_new_folder
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from editors.lm.frozen import FrozenLM


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("convert", help="a saved edit as a LoRA adapter or as a merged model")
    parser.add_argument("edit", help=".safetensors file written by apply, batch or compose")
    parser.add_argument("--to", required=True, choices=("lora", "merged"), help="the form to write")
    add_output_option(parser)
    parser.add_argument("--rank", type=whole_number, help="largest rank of the adapter (default: exact)")
    add_base_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the edit in another form.

    Raises:
        EditorError: the edit does not fit the base model.
        UsageError: the options do not fit together.
    """
    require_new_folder(options.output)
    edit = low_rank(load_edit(options.edit))
    edit.require_single("convert")
    manifest = EditManifest.of(edit)
    base = chosen_base_model(options, manifest.base)
    if options.to == "merged":
        if options.rank is not None:
            raise UsageError("--rank is for --to lora: a merged model has no rank to save")
        save_merged(options.output, edit, base)
        _say_rounding(options.output, console)
    elif options.rank is None:
        save_lora(options.output, edit, load_skeleton(base))
    else:
        _save_truncated(options, edit, base, console)
    console.print(Text(f"Edit written to {options.output}"))
    return 0


def _say_rounding(folder: str, console: Console) -> None:
    worst = max(EditManifest.load(Path(folder)).export["rounding_error"].values())
    console.print(Text(f"Lost by rounding to the type of the weights: at most {worst:.2%} of a layer's update"))


def _save_truncated(options: argparse.Namespace, edit: LowRankEdit, base: BaseModelConfig, console: Console) -> None:
    """An adapter of smaller rank, with what the truncation changes."""
    truncated = truncate(edit, options.rank)
    manifest = EditManifest.of(edit)
    model = load_base_model(base)
    manifest.require_weights(weights_hash(model, torch.bfloat16), base)
    lm = FrozenLM(replace(base, sites=list(edit.updates)), model, load_tokenizer(base))
    tokens = lm.read([manifest.requests()]).tokens
    facts: dict[str, Any] = {
        "truncation_error": truncation_error(edit, truncated),
        "logit_error": logit_error(lm, tokens, edit, truncated),
    }
    save_lora(options.output, truncated, model, facts)
    worst = max(facts["truncation_error"].values())
    console.print(
        Text(
            f"Rank {options.rank} changes the edit's own answers' logits by at most {facts['logit_error']:.3g}, "
            f"and a layer's update by at most {worst:.2%}"
        )
    )
