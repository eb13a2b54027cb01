"""Tests of `editors.base_models.blocks`: the transformer blocks are found by structure."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from editors.base_models.blocks import block_index, find_blocks
from editors.common.errors import BaseModelError
from tests.editors.base_models.test_sites import EXPECTED
from tests.tiny_models import ARCHITECTURES, BLOCKS, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_found_by_structure(architecture: str) -> None:
    name, blocks = find_blocks(tiny_model(architecture))
    assert name == EXPECTED[architecture][0]
    assert len(blocks) == BLOCKS


def test_a_list_as_long_as_the_block_list_is_not_taken_for_it() -> None:
    model = tiny_model("llama")
    decoy = nn.ModuleList(nn.Linear(2, 2) for _ in range(BLOCKS))
    model._modules = {"adapters": decoy, **model._modules}
    assert find_blocks(model)[0] == "model.layers"


def test_a_model_without_blocks_is_refused() -> None:
    class Blockless(PreTrainedModel):
        config_class = PreTrainedConfig

    config = PreTrainedConfig()
    config.num_hidden_layers = 7
    with pytest.raises(BaseModelError, match="Blockless has no list of 7 transformer blocks"):
        find_blocks(Blockless(config))


def test_block_index_reads_the_number_after_the_list() -> None:
    assert block_index("transformer.h.17.mlp.c_fc", "transformer.h") == 17
