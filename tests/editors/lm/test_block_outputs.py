"""What blocks give out: known before any text is read, also of models whose weights cannot be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, Lfm2Config, MixtralConfig, PreTrainedModel

from editors.base_models.blocks import find_blocks
from editors.lm.block_outputs import BlockOutputs
from tests.editors.lm.batching.test_prefix_sharing import SIZES, random_model
from tests.tiny_models import ARCHITECTURES, tiny_model
from tests.tiny_seq2seq import ARCHITECTURES as ENCODER_DECODERS
from tests.tiny_seq2seq import tiny_seq2seq

Makes = dict[str, Callable[[], PreTrainedModel]]
LATENT: dict[str, Any] = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
EXPERTS = MixtralConfig(**SIZES, num_local_experts=4)
CONVOLUTIONS = Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)
LATENT_ATTENTION = DeepseekV2Config(**SIZES, **LATENT, q_lora_rank=None, first_k_dense_replace=4)
ATTENTION: Makes = {name: partial(tiny_model, name) for name in ARCHITECTURES}
ATTENTION["mixture of experts"] = partial(random_model, EXPERTS)
OTHERS: Makes = {name: partial(tiny_seq2seq, name) for name in ENCODER_DECODERS}
OTHERS |= {"convolutions": partial(random_model, CONVOLUTIONS), "latent": partial(random_model, LATENT_ATTENTION)}


@pytest.mark.parametrize("name", ATTENTION | OTHERS)
def test_a_model_without_values_says_the_same(name: str) -> None:
    make = (ATTENTION | OTHERS)[name]
    absent: Any = make()
    assert BlockOutputs.of(absent.to("meta")) == BlockOutputs.of(make())


@pytest.mark.parametrize("name", ATTENTION)
def test_blocks_return_what_was_found(name: str) -> None:
    model = ATTENTION[name]()
    _, blocks = find_blocks(model)
    outputs: list[bool] = []
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(isinstance(output, tuple)))
    found = BlockOutputs.of(model)
    outputs.clear()
    model(torch.tensor([[3, 4, 5]]))
    assert outputs == [found.are_tuples] * len(blocks)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_leaves_keys_and_values_to_read_on(name: str) -> None:
    found = BlockOutputs.of(ATTENTION[name]())
    assert found.fill_kv_cache()
    assert all(shapes is not None and shapes[0][-2] == 2 for shapes in found.kv_shapes)


@pytest.mark.parametrize("name", OTHERS)
def test_others_do_not(name: str) -> None:
    found = BlockOutputs.of(OTHERS[name]())
    assert not found.fill_kv_cache()
    assert found.fill_kv_cache(0, 0)


def test_a_model_is_run_once() -> None:
    model, passes = tiny_model("llama"), []
    model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    assert BlockOutputs.of(model) is BlockOutputs.of(model)
    assert passes == [1]


def test_the_blocks_that_are_asked_for_decide() -> None:
    one, other = ((torch.Size([1, 2, 2, width]),) * 2 for width in (4, 8))
    found = BlockOutputs(are_tuples=False, kv_shapes=(one, one, other, None))
    assert found.fill_kv_cache(0, 2)
    assert found.fill_kv_cache(2, 3)
    assert not found.fill_kv_cache(1, 3)
    assert not found.fill_kv_cache(2)
