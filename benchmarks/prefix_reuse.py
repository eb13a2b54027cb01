"""How often training texts come again: `python -m benchmarks.prefix_reuse --config FILE … --path DIR [--steps 1000]`.

Nothing is computed but the texts' tokens: it tells what a prefix cache is good for before anything is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from benchmarks.setting import Setting, quieten
from datamodules import EditDataModule
from editors.base_models.loading import BaseModelConfig
from editors.lm.batching.compact import Compact, Text
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch


@dataclass
class Reuse:
    """Tokens of the training texts of some steps.

    Args:
        tokens: of all texts.
        twice: of texts that come twice in one step, without the first of them.
        known: of texts that were in an earlier step.
        prompt_known: of the prompts, where the text was in no earlier step and its prompt was.
        distinct: of all texts, each counted once: what a cache has to hold.
        epochs: how many times the records were gone through.
    """

    tokens: int = 0
    twice: int = 0
    known: int = 0
    prompt_known: int = 0
    distinct: int = 0
    epochs: float = 0.0


def count_reuse(data: EditDataModule, steps: int) -> Reuse:
    """Count over the first `steps` training batches of `data`."""
    reuse = Reuse()
    texts: set[Text] = set()
    prompts: set[Text] = set()
    for batch in _batches(data, steps):
        here: set[Text] = set()
        prompts_here: set[Text] = set()
        for part in (batch.edit, batch.rephrase, batch.locality):
            for text, prompt in zip(Compact(part).texts, _prompts(part), strict=True):
                reuse.tokens += len(text)
                if text in here:
                    reuse.twice += len(text)
                elif text in texts:
                    reuse.known += len(text)
                elif prompt in prompts:
                    reuse.prompt_known += len(prompt)
                here.add(text)
                prompts_here.add(prompt)
        reuse.distinct += sum(map(len, here - texts))
        texts |= here
        prompts |= prompts_here
        reuse.epochs += batch.num_episodes * data.edits_per_episode / len(data.records["train"])
    return reuse


def _batches(data: EditDataModule, steps: int) -> Iterator[EditBatch]:
    """The first training batches, over as many epochs as it takes."""
    loader = data.train_dataloader()
    epoch = done = 0
    while True:
        loader.sampler.set_epoch(epoch)
        for numbers in loader.sampler:
            if done == steps:
                return
            yield loader.dataset[numbers]
            done += 1
        epoch += 1


def _prompts(tokens: TokenBatch) -> list[Text]:
    return [tuple(ids) for ids in tokens.prompt_ids()]


def read_configured(files: Sequence[Path], path: str, base_model: BaseModelConfig) -> EditDataModule:
    """The data that configuration files, merged in this order, ask for; read.

    Args:
        files: as given to `train.py`; only their `data` section counts.
        path: folder with the data files.
        base_model: whose tokenizer encodes the texts.
    """
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.load, files)))
    section = merged["data"]
    section["init_args"] |= {"path": path, "base_model": asdict(base_model)}
    parser = ArgumentParser()
    parser.add_subclass_arguments(EditDataModule, "data")
    data: EditDataModule = parser.instantiate(parser.parse_object({"data": section})).data
    data.setup("fit")
    return data


def table(reuse: Reuse, width: int) -> Table:
    """What a cache of hidden states `width` numbers wide is good for."""
    shown = Table("training texts", "", title="Texts that come again")
    for name, count in (
        ("twice in one step", reuse.twice),
        ("known from an earlier step", reuse.known),
        ("only the prompt known", reuse.prompt_known),
    ):
        shown.add_row(name, f"{count / reuse.tokens:.0%}")
    shown.add_row("room needed in float32", f"{reuse.distinct * width * 4 / 1e6:,.0f} MB")
    shown.add_row("epochs", f"{reuse.epochs:.2f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description="How often training texts come again.")
    parser.add_argument("--config", type=Path, action="append", required=True, help="configuration file; repeatable")
    parser.add_argument("--path", default=".", help="folder with the data files")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--base-model", default=Setting().base_model, help="whose tokenizer encodes the texts")
    parser.add_argument("--width", type=int, default=576, help="hidden width of the base model (default: SmolLM2-135M)")
    options = parser.parse_args(arguments)
    quieten()
    base_model = BaseModelConfig(options.base_model)
    data = read_configured(options.config, options.path, base_model)
    Console().print(table(count_reuse(data, options.steps), options.width))


if __name__ == "__main__":
    main()
