"""The options that say where a base model is."""

from __future__ import annotations

import argparse
from dataclasses import replace

from editors.base_model import BaseModelConfig


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
