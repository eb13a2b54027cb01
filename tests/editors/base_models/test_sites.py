"""Tests of `editors.base_models.sites`: which layers are edited by default, and how sites are named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editors.base_models.sites import (
    feed_forward_sites,
    is_linear,
    linear_widths,
    resolve_sites,
)
from editors.common.errors import SiteError
from tests.tiny_models import ARCHITECTURES, BLOCKS, tiny_model

GATED = ("gate_proj", "up_proj", "down_proj")
# Architecture -> name of the block list, name of the feed-forward part, its linear layers in module order.
EXPECTED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "llama": ("model.layers", "mlp.", GATED),
    "qwen2": ("model.layers", "mlp.", GATED),
    "qwen3": ("model.layers", "mlp.", GATED),
    "mistral": ("model.layers", "mlp.", GATED),
    "gemma2": ("model.layers", "mlp.", GATED),
    "gemma3": ("model.layers", "mlp.", GATED),
    "phi3": ("model.layers", "mlp.", ("gate_up_proj", "down_proj")),
    "gpt2": ("transformer.h", "mlp.", ("c_fc", "c_proj")),
    "gptj": ("transformer.h", "mlp.", ("fc_in", "fc_out")),
    "gpt_neox": ("gpt_neox.layers", "mlp.", ("dense_h_to_4h", "dense_4h_to_h")),
    "opt": ("model.decoder.layers", "", ("fc1", "fc2")),
    "falcon": ("transformer.h", "mlp.", ("dense_h_to_4h", "dense_4h_to_h")),
    "falcon_alibi": ("transformer.h", "mlp.", ("dense_h_to_4h", "dense_4h_to_h")),
}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    """A tiny Llama; no test here changes it."""
    return tiny_model("llama")


def test_every_architecture_has_an_expectation() -> None:
    assert set(EXPECTED) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_sites_are_the_feed_forward_layers_of_the_last_blocks(architecture: str) -> None:
    blocks, part, names = EXPECTED[architecture]
    model = tiny_model(architecture)
    for count in (1, 3):
        expected = [f"{blocks}.{i}.{part}{name}" for i in range(BLOCKS - count, BLOCKS) for name in names]
        assert resolve_sites(model, None, count) == expected


def test_more_blocks_than_there_are_take_all(llama: PreTrainedModel) -> None:
    assert feed_forward_sites(llama, 99) == feed_forward_sites(llama, BLOCKS)
    assert len(feed_forward_sites(llama, 99)) == BLOCKS * len(GATED)


# --- patterns --------------------------------------------------------------------------------------------------------


def test_exact_names_keep_their_order(llama: PreTrainedModel) -> None:
    names = ["model.layers.3.mlp.down_proj", "model.layers.1.mlp.up_proj", "model.layers.2.self_attn.o_proj"]
    assert resolve_sites(llama, names) == names


def test_patterns_expand_in_module_order_and_between_each_other_as_given(llama: PreTrainedModel) -> None:
    assert resolve_sites(llama, ["*.[23].mlp.down_proj", "model.layers.0.mlp.*"]) == [
        "model.layers.2.mlp.down_proj",
        "model.layers.3.mlp.down_proj",
        *(f"model.layers.0.mlp.{name}" for name in GATED),
    ]


def test_a_layer_named_twice_is_one_site(llama: PreTrainedModel) -> None:
    sites = resolve_sites(llama, ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.*", "*.1.mlp.up_proj"])
    assert sites == ["model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.down_proj"]


def test_an_empty_list_of_names_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(SiteError, match="empty"):
        resolve_sites(llama, [])


@pytest.mark.parametrize(
    "pattern",
    [
        "model.layers.1.mlp.gate",
        "model.layers.9.mlp.*",
        "MODEL.LAYERS.1.MLP.UP_PROJ",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.1.input_layernorm",
        "lm_head",
        "",
    ],
)
def test_a_name_that_is_no_linear_layer_of_a_block_is_refused_with_candidates(
    llama: PreTrainedModel, pattern: str
) -> None:
    with pytest.raises(SiteError) as caught:
        resolve_sites(llama, ["model.layers.1.mlp.up_proj", pattern])
    message = str(caught.value)
    assert repr(pattern) in message
    for name in (*(f"mlp.{name}" for name in GATED), "self_attn.q_proj"):
        assert f"model.layers.{BLOCKS - 1}.{name}" in message
    assert "model.layers.0." not in message, "candidates of one block are enough"


def test_candidates_come_from_the_numerically_last_block() -> None:
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(model.model.layers) * 3)
    model.config.num_hidden_layers = 3 * BLOCKS
    with pytest.raises(SiteError, match=r"last block of model\.layers \(11;"):
        resolve_sites(model, ["nothing"])


# --- layers ----------------------------------------------------------------------------------------------------------


def test_widths_are_input_then_output_for_both_kinds_of_layer() -> None:
    assert linear_widths(nn.Linear(3, 5)) == (3, 5)
    assert linear_widths(Conv1D(5, 3)) == (3, 5)


def test_widths_do_not_read_the_weight() -> None:
    """ZeRO-3 leaves an empty weight behind."""
    layer = nn.Linear(3, 5)
    layer.weight = nn.Parameter(torch.empty(0))
    assert linear_widths(layer) == (3, 5)


def test_only_linear_layers_are_linear() -> None:
    class QuantisedLinear(nn.Linear):
        pass

    assert all(is_linear(layer) for layer in (nn.Linear(2, 2), Conv1D(2, 2), QuantisedLinear(2, 2)))
    assert not any(is_linear(layer) for layer in (nn.Embedding(2, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1)))
