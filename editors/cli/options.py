"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.text import Text

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.making.registry import registered_method
from editors.texts.conflicts import told_conflicts
from editors.texts.forms import has_chat_template
from editors.texts.request_files import BadRow, RequestRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editors.artifacts.editor import LoadedEditor


def add_base_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--trust-remote-code`."""
    parser.add_argument(
        "--model", help="where the base model is now: Hub id, folder or .gguf (default: as in training)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code that comes with the base model's repository (default: never, whatever the artifact says)",
    )


def chosen_base_model(options: argparse.Namespace, default: BaseModelConfig) -> BaseModelConfig:
    """The base model that the options name; what they do not say is as in `default`."""
    return replace(default, name=options.model or default.name, trust_remote_code=options.trust_remote_code)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="cpu", help="device to compute on (default: %(default)s)")


def require_device(name: str) -> None:
    """Check, before anything is loaded, that torch can compute on the device that `--device` names.

    Raises:
        EditorError: torch knows no such device, or has none here.
    """
    try:
        torch.zeros(1, device=name).item()  # the number, too: the "meta" device has none
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # what torch raises differs by kind
        reason = str(error).strip().splitlines() or ["torch gives no reason"]
        raise EditorError(f"--device {name}: {reason[0]}. Name one that torch has here, such as cpu") from error


def whole_number(text: str) -> int:
    """The value of an option that counts something: wrong usage is told before anything is loaded."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, for a command that writes a folder."""
    parser.add_argument("--output", required=True, help="folder to write; must not exist, or be empty")


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`, for a command that writes a file. Folders are never replaced: they may hold more."""
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists (default: refuse)")


def warn_of_bare_edits(editor: LoadedEditor, tokenizer: PreTrainedTokenizerBase, remedy: str, console: Console) -> None:
    """Say in a line that weight updates made in bare form are seldom seen in chats, if the base model is a chat model.

    An edit memory finds what is asked in either form.

    Args:
        editor: makes the edits.
        tokenizer: the base model's.
        remedy: what to give for the chat form.
        console: where to print the line.
    """
    if has_chat_template(tokenizer) and registered_method(editor.config.editor).merges:
        line = f"The base model has a chat template, in which edits made in bare form seldom hold; give {remedy}"
        console.print(Text(line, style="yellow"), soft_wrap=True)


def warn_of_contradictions(rows: Iterable[RequestRow | BadRow], effect: str, console: Console) -> None:
    """Say in a line how many rows of a file ask for different answers to one question, if any do.

    Args:
        rows: of the file.
        effect: what follows from that.
        console: where to print the line.
    """
    told = told_conflicts([row.request for row in rows if isinstance(row, RequestRow)], "row(s)")
    if told:
        console.print(Text(f"{told}. {effect}", style="yellow"), soft_wrap=True)
