"""`convert`: saved edits as LoRA adapters or as a merged model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.text import Text

from editors.artifacts.edit_files import load_edit
from editors.artifacts.gguf_lora import save_gguf_lora
from editors.artifacts.lora import save_lora, save_lora_among, vllm_gap
from editors.artifacts.merged import save_merged
from editors.artifacts.serving_form import exact_rank
from editors.artifacts.truncation import logit_error, truncate, truncation_error
from editors.base_models.loading import (
    BaseModelConfig,
    load_base_model,
    load_skeleton,
    load_tokenizer,
    weights_hash,
)
from editors.cli.options import add_base_model_options, chosen_base_model, whole_number
from editors.common.errors import ArtifactError, EditorError, UsageError
from editors.common.files import require_new_folder
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from editors.edits.protocol import require_finite
from editors.lm.frozen import FrozenLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("convert", help="saved edits as LoRA adapters or as a merged model")
    files = ".safetensors file written by apply, batch or compose; several for --to lora, with --folder"
    parser.add_argument("edits", nargs="+", metavar="edit", help=files)
    forms = "the form to write: an adapter for PEFT, vLLM and SGLang, one for llama.cpp, or a model"
    parser.add_argument("--to", required=True, choices=("lora", "gguf-lora", "merged"), help=forms)
    parser.add_argument("--output", required=True, help="folder to write; must not exist, or be empty")
    folder = "--output is a folder of adapters, which may hold others already: write each edit to OUTPUT/ITS_NAME"
    parser.add_argument("--folder", action="store_true", help=folder)
    rank = "rank of every layer of the adapter; larger updates are truncated to it (default: exact, the smallest rank "
    parser.add_argument("--rank", type=whole_number, help=rank + "that servers know and the edit fits in)")
    name = "what the adapter calls its base model: for vLLM the name that it is served under (default: as in training)"
    parser.add_argument("--base-model-name", help=name)
    add_base_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the edits in another form.

    Raises:
        EditorError: an edit does not fit the base model, or is not finite.
        UsageError: the options do not fit together.
    """
    _require_sensible(options)
    if options.folder:
        _write_folder(options, console)
        return 0
    require_new_folder(options.output)
    edit = _read(options.edits[0])
    base = chosen_base_model(options, EditManifest.of(edit).base)
    if options.to == "merged":
        save_merged(options.output, edit, base)
        _say_rounding(options.output, console)
    else:
        model, edit, facts = _fitted(edit, options.rank, base, _Models(), console)
        if options.to == "gguf-lora":
            save_gguf_lora(options.output, edit, model, facts, rank=options.rank)
        else:
            save_lora(options.output, edit, model, facts, rank=options.rank, base_model_name=options.base_model_name)
            _say_gap(model, console)
        _say_adapter(Path(options.output), console)
    console.print(Text(f"Edit written to {options.output}"))
    return 0


def _require_sensible(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together, before anything is loaded."""
    if options.to == "merged" and options.rank is not None:
        raise UsageError("--rank is for adapters: a merged model has no rank to save")
    if options.to != "lora" and (options.folder or options.base_model_name is not None):
        raise UsageError("--folder and --base-model-name are for --to lora")
    if len(options.edits) > 1 and not options.folder:
        raise UsageError(
            f"{len(options.edits)} edits: give --to lora --folder for an adapter of each, or compose them first"
        )
    if options.folder and Path(options.output).exists() and not Path(options.output).is_dir():
        raise ArtifactError(f"{options.output} is a file; name a folder, which may hold other adapters")


def _read(path: str) -> LowRankEdit:
    edit = low_rank(load_edit(path))
    edit.require_single("convert")
    require_finite(edit, "convert")
    return edit


class _Models:
    """Base models, each loaded once however many edits are for it."""

    def __init__(self) -> None:
        self._loaded: dict[str, PreTrainedModel] = {}

    def get(self, load: Callable[[BaseModelConfig], PreTrainedModel], base: BaseModelConfig) -> PreTrainedModel:
        """The model that `load` gives for `base`."""
        key = f"{load.__name__} {base}"
        if key not in self._loaded:
            self._loaded[key] = load(base)
        return self._loaded[key]


def _fitted(
    edit: LowRankEdit, rank: int | None, base: BaseModelConfig, models: _Models, console: Console
) -> tuple[PreTrainedModel, LowRankEdit, dict[str, Any]]:
    """The base model, the edit truncated to `rank` if it is of a larger one, and facts about that."""
    if rank is None or exact_rank(edit) <= rank:
        return models.get(load_skeleton, base), edit, {}
    truncated, manifest = truncate(edit, rank), EditManifest.of(edit)
    model = models.get(load_base_model, base)
    manifest.require_weights(weights_hash(model, torch.bfloat16), base)
    lm = FrozenLM(replace(base, sites=list(edit.updates)), model, load_tokenizer(base))
    tokens = lm.read([manifest.requests()]).tokens
    errors = truncation_error(edit, truncated)
    facts = {"truncation_error": errors, "logit_error": logit_error(lm, tokens, edit, truncated)}
    console.print(
        Text(
            f"Rank {rank} changes the edit's own answers' logits by at most {facts['logit_error']:.3g}, "
            f"and a layer's update by at most {max(errors.values()):.2%}"
        )
    )
    return model, truncated, facts


def _write_folder(options: argparse.Namespace, console: Console) -> None:
    """Write each edit to a folder of its own in `--output`."""
    models, ranks = _Models(), list[int]()
    for path in options.edits:
        try:
            edit = _read(path)
            base = chosen_base_model(options, EditManifest.of(edit).base)
            model, edit, facts = _fitted(edit, options.rank, base, models, console)
            name = options.base_model_name
            adapter = save_lora_among(options.output, edit, model, facts, rank=options.rank, base_model_name=name)
        except EditorError as error:
            # Those before it are written, and stay: the same command goes on where it stopped.
            raise type(error)(str(error) if path in str(error) else f"{path}: {error}") from error
        if not ranks:
            _say_gap(model, console)
        ranks.append(EditManifest.load(adapter).export["rank"])
        console.print(Text(f"{adapter.name}  {path}"), soft_wrap=True)
    console.print(Text(f"{len(ranks)} adapter(s) in {options.output}; servers need --max-lora-rank {max(ranks)}"))


def _say_gap(model: PreTrainedModel, console: Console) -> None:
    gap = vllm_gap(model)
    if gap is not None:
        console.print(Text(gap, style="yellow"), soft_wrap=True)


def _say_adapter(folder: Path, console: Console) -> None:
    export = EditManifest.load(folder).export
    worst = max(export["bf16_error"].values())
    console.print(
        Text(
            f"Adapter {export['name']} of rank {export['rank']}; bfloat16 loses at most {worst:.2%} of a layer's update"
        )
    )


def _say_rounding(folder: str, console: Console) -> None:
    worst = max(EditManifest.load(Path(folder)).export["rounding_error"].values())
    console.print(Text(f"Lost by rounding to the type of the weights: at most {worst:.2%} of a layer's update"))
