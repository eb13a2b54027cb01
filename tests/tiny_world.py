"""A tiny world on disk: a random Llama with a real tokenizer, zsRE files, and a command line that trains on them.

Subjects, prompts and locality questions of the splits are disjoint, so that nothing is refused as a leak.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from train import EditorCLI, main

HIDDEN, BLOCKS, VOCABULARY = 32, 4, 300
COUNTS = {"train": 24, "val": 8, "test": 8}
RUN_FOLDER_VARIABLE = "HYPEREDIT_RUN_FOLDER"
# The template of many chat models, with a beginning-of-text token and a system message of its own.
CHATML = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ModelSection = Callable[[Path], dict[str, Any]]

_SYLLABLES = ("bel", "dor", "fen", "gal", "hum", "jor", "kes", "lum", "mar", "nor")
_TEMPLATES = (
    ("What is the capital of {}?", "Which city is the seat of {}?"),
    ("Who founded {}?", "By whom was {} founded?"),
    ("Which language do people in {} speak every day?", "What is spoken in {}?"),
)
_ANSWERS = ("Osten", "Lume", "Anna Weld", "Tomas Reed", "Velda", "Halden", "Marrow", "Kestria")


def name(number: int) -> str:
    """The invented name with this number; all names differ."""
    return (_SYLLABLES[number // 10 % 10] + _SYLLABLES[number % 10] + "ia" * (number // 100)).capitalize()


def row(number: int) -> dict[str, Any]:
    """Row `number` of a zsRE file; about a third of all answers have two words."""
    prompt, rephrase = _TEMPLATES[number % len(_TEMPLATES)]
    subject = name(number)
    return {
        "subject": subject,
        "src": prompt.format(subject),
        "rephrase": rephrase.format(subject),
        "alt": _ANSWERS[number % len(_ANSWERS)],
        "answers": [_ANSWERS[(number + 3) % len(_ANSWERS)]],
        "loc": f"nq question: who lives in {name(number + 50)} by the sea",
        "loc_ans": _ANSWERS[(number + 5) % len(_ANSWERS)],
    }


def write_model(
    folder: Path, seed: int = 0, hidden: int = HIDDEN, kind: type[PreTrainedConfig] = LlamaConfig, **config: Any
) -> Path:
    """Write a random Llama (or `kind`) whose weights are large enough for edits to show. Returns `folder`."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 160,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(kind(**{**settings, **config}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def write_tokenizer(
    folder: Path, template: str = "<s> $A", vocabulary: int = VOCABULARY, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the world's texts; `template` says which special tokens surround a text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", *(("<|im_start|>", "<|im_end|>") if chat_template else ())]
    texts = [text for number in range(60) for text in row(number).values() if isinstance(text, str)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, number) for number, token in enumerate(special)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return fast


def chatting(world: TinyWorld, folder: Path) -> Path:
    """The world's model with a tokenizer that has a chat template. Returns `folder`."""
    shutil.copytree(world.model, folder)
    write_tokenizer(folder, chat_template=CHATML)
    return folder


def write_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT of width 16 with a WordPiece tokenizer of the world's words. Returns `folder`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    texts = [text for number in range(60) for text in row(number).values() if isinstance(text, str)]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    letters = sorted({letter for word in words for letter in word})
    # Not trained: the trainer breaks ties differently from run to run.
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    tokenizer = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=48, initializer_range=0.3,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class TinyWorld:
    """Where the pieces are.

    Args:
        model: folder of the base model and its tokenizer.
        data: folder with `train.json`, `val.json` and `test.json`.
        models: the `model` section for each editor, given the base model's folder.
    """

    model: Path
    data: Path
    models: Mapping[str, ModelSection] = field(default_factory=lambda: MODELS)

    def config(self, root: Path, editor: str = "mend") -> dict[str, Any]:
        """A configuration for `editor` that trains 12 steps on the tiny world within a second or two.

        Args:
            root: where runs put their folders.
            editor: registered name.
        """
        return {
            "seed_everything": 0,
            "trainer": {
                "default_root_dir": str(root),
                "accelerator": "cpu",
                "max_steps": 12,
                "max_epochs": 100,
                "val_check_interval": 6,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": [_item("lightning.pytorch.loggers.CSVLogger", save_dir=str(root), name="", version="")],
                "callbacks": [
                    *_CHECKPOINTS,
                    *(_item(f"callbacks.{name}") for name in _CALLBACKS),
                    _item("callbacks.WriteReport", count=2),
                ],
            },
            "model": self.models[editor](self.model),
            "data": _item(
                "datamodules.EditDataModule",
                path=str(self.data),
                episodes_per_batch=4,
                eval_batch_size=4,
                **{split: [_item("datamodules.ZsRE", file=f"{split}.json")] for split in COUNTS},
            ),
        }

    def arguments(self, verb: str, root: Path, *more: str, editor: str = "mend") -> list[str]:
        """Arguments for `train.main`; the configuration is written beside `root`."""
        path = root.parent / f"{root.name}-{editor}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.config(root, editor), sort_keys=False))
        return [verb, f"--config={path}", *more]

    def run(self, verb: str, root: Path, *more: str, editor: str = "mend") -> EditorCLI:
        """Run the command line in this process."""
        return run(self.arguments(verb, root, *more, editor=editor))


_CALLBACKS = ("Watchdog", "ResultsFile", "ExampleTable", "ResultPlot", "ExportArtifact")


def _item(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


_CHECKPOINTS = [
    _item("lightning.pytorch.callbacks.ModelCheckpoint", enable_version_counter=False, **arguments)
    for arguments in ({"monitor": "val/loss/total", "filename": "best"}, {"filename": "last"})
]


_TRAINING = {"learning_rate": 1e-3, "lr_schedule": "linear", "warmup_steps": 2}


def model_section(class_path: str, init_args: Mapping[str, Any]) -> ModelSection:
    """A `model` section that edits the last two blocks."""

    def section(model: Path) -> dict[str, Any]:
        return _item(class_path, base_model={"name": str(model), "dtype": "float32", "num_blocks": 2}, **init_args)

    return section


def _serac(model: Path) -> dict[str, Any]:
    arguments = {"serac": {"encoder": str(model.parent / "encoder"), "rank": 4}, "scope_learning_rate": 1e-3}
    return model_section("editors.methods.serac.module.SERAC", {**arguments, "training": _TRAINING})(model)


# The `model` section for each registered editor.
MODELS: dict[str, ModelSection] = {
    "ke": model_section(
        "editors.methods.ke.module.KE",
        {
            "ke": {"hidden_width": 16, "condition_width": 24, "edit_rate": 0.02},
            "kl_margin": {"start": 0.1, "end": 0.01},
            "norm_margin": {"start": 0.01, "end": 0.001},
            "training": _TRAINING,
        },
    ),
    "mend": model_section(
        "editors.methods.mend.module.MEND",
        {"mend": {"rank": 8, "edit_rate": 0.05}, "edit_rate_learning_rate": 1e-3, "training": _TRAINING},
    ),
    "serac": _serac,
}


def write_splits(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """Write one zsRE file for each split, of disjoint rows. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for split, count in (counts or COUNTS).items():
        rows = [row(number) for number in range(first, first + count)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
        first += count
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """The tiny world; tests must not write into it."""
    folder = tmp_path_factory.mktemp("tiny_world")
    world = TinyWorld(write_model(folder / "model"), write_splits(folder / "data"))
    write_tokenizer(world.model)
    write_encoder(folder / "encoder")
    return world


@contextmanager
def as_from_a_shell() -> Iterator[None]:
    """Let `train` run inside this process as if from a shell, and leave the process as it was."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for variable in (RUN_FOLDER_VARIABLE, "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            # Set first, so that the variable's absence is restored whatever a run does to it.
            patch.setenv(variable, "")
            patch.delenv(variable)
        patch.setattr("sys.argv", ["train.py"])
        yield


def run_process(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; it may fail."""
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if name != RUN_FOLDER_VARIABLE},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def run(arguments: Sequence[str]) -> EditorCLI:
    """Run the command line in this process."""
    with as_from_a_shell():
        return main(list(arguments))
