"""Tests of `configs/lm/`: the layers exist in models of the published shapes, and memory is what the comment says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

from editors.mend.network import MENDConfig, MENDNetwork
from editors.sites import linear_widths, resolve_sites

FOLDER = Path(__file__).parents[1] / "configs" / "lm"
T5_LIKE: dict[str, Any] = {"vocab_size": 32128, "num_layers": 24, "num_heads": 32, "decoder_start_token_id": 0}
_VERSION_1_1: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5_XL = T5Config(**T5_LIKE, **_VERSION_1_1, d_model=2048, d_kv=64, d_ff=5120)
T5_3B = T5Config(**T5_LIKE, d_model=1024, d_kv=128, d_ff=16384)
LLAMA_LIKE: dict[str, Any] = {"num_key_value_heads": 8, "num_attention_heads": 32, "hidden_size": 4096}
# Configuration file -> the published shape of its base model, where it can be built, and how many layers are edited.
SHAPES: dict[str, tuple[PreTrainedConfig, int]] = {
    "t5-xl": (T5_XL, 8),
    "gpt-j-6b": (GPTJConfig(), 6),
    "llama-3.1-8b": (
        LlamaConfig(**LLAMA_LIKE, vocab_size=128256, intermediate_size=14336, num_hidden_layers=32),
        9,
    ),
    "qwen3-8b": (
        Qwen3Config(**LLAMA_LIKE, vocab_size=151936, intermediate_size=12288, num_hidden_layers=36, head_dim=128),
        9,
    ),
}
# A parameter that is trained takes 4 bytes for itself, its gradient and Adam's two moments each.
TRAINED_BYTES = 16


def model_of(shape: PreTrainedConfig) -> PreTrainedModel:
    """A model of this shape without weights."""
    kind = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(shape)
    return model


def parameters(model: PreTrainedModel, *, own_head: bool = False) -> int:
    """How many there are; `own_head` counts a head that transformers ties until it sees the weights."""
    head = model.get_output_embeddings().weight.numel() if own_head else 0
    return sum(parameter.numel() for parameter in model.parameters()) + head


def mend_parameters(model: PreTrainedModel, sites: list[str]) -> int:
    widths = {site: linear_widths(model.get_submodule(site)) for site in resolve_sites(model, sites)}
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MENDNetwork(widths, MENDConfig()).parameters())


def test_every_large_model_is_covered() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*SHAPES, "smollm2-135m"}


@pytest.mark.parametrize("name", SHAPES)
def test_the_named_layers_exist_and_memory_is_as_the_comment_says(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text)["model"]["init_args"]["base_model"]
    shape, count = SHAPES[name]
    model = model_of(shape)
    assert len(resolve_sites(model, base["sites"])) == count
    assert base["dtype"] == "bfloat16"
    total, mend = parameters(model, own_head=shape is T5_XL), mend_parameters(model, base["sites"])
    comment = re.sub(r"\n# ?", " ", text)
    for said in (
        f"{2 * total / 1e9:.1f} GB in bfloat16 ({total / 1e9:.2f} G parameters)",
        f"{TRAINED_BYTES * mend / 1e9:.1f} GB for MEND at rank 1920 ({mend / 1e6:.0f} M parameters in float32",
    ):
        assert said in comment


def test_the_surveys_t5_fits_with_the_change_that_the_comment_names() -> None:
    text = (FOLDER / "t5-xl.yaml").read_text(encoding="utf-8")
    sites = yaml.safe_load(text.replace("wi_0", "wi"))["model"]["init_args"]["base_model"]["sites"]
    model = model_of(T5_3B)
    assert len(resolve_sites(model, sites)) == 8
    sizes = 2 * parameters(model), TRAINED_BYTES * mend_parameters(model, sites)
    assert "{:.1f} GB, plus {:.1f} GB for MEND".format(*(size / 1e9 for size in sizes)) in text
