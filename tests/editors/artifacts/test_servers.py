"""Contracts with servers: where their packages are installed, their own code reads our adapters.

Neither is a dependency: `pip install --no-deps vllm sglang`, and what their imports then miss, is enough on a CPU.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from editors.artifacts.lora import save_lora, save_lora_among
from editors.base_models.sites import linear_widths, site_widths
from editors.edits.low_rank import LowRankEdit
from tests.serving_readers import Factors, as_edit, deep_llama, recipe_sites
from tests.tiny_models import random_batch, random_edit

# SGLang's name of a layer, what it holds, and where that is in a block of Llama.
STACKED = {
    "qkv_proj": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "o_proj": ("self_attn", ("o_proj",)),
    "gate_up_proj": ("mlp", ("gate_proj", "up_proj")),
    "down_proj": ("mlp", ("down_proj",)),
}
LONE = ["*.21.self_attn.k_proj", "*.23.mlp.up_proj"]  # of each group a member, in another block each
SITES = recipe_sites() | {"k, up": LONE}
METADATA = {
    "editor": "mend",
    "base_model": {"name": "tiny", "revision": None, "dtype": "float32"},
    "base_weights": "0" * 64,
    "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
    "created": "2026-01-02T03:04:05+00:00",
}


def an_edit(model: PreTrainedModel, sites: list[str]) -> LowRankEdit:
    """Of two ranks."""
    edit = random_edit(site_widths(model, sites), rank=28)
    edit.metadata = dict(METADATA)
    list(edit.updates.values())[-1].v[0, 6:] = 0
    return edit


@torch.no_grad()
def logits(model: PreTrainedModel, edit: LowRankEdit) -> Tensor:
    with edit.applied(model):
        return model(input_ids=random_batch([9, 9]).input_ids).logits


def module(name: str) -> Any:
    """A server's module; the test is skipped where it is not installed."""
    return pytest.importorskip(name, exc_type=ImportError)


def vllm_reads(folder: Path, rank: int) -> LowRankEdit:
    """What vLLM takes for the adapter, checked against the rank that it was started with."""
    helper = module("vllm.lora.peft_helper").PEFTHelper.from_local_dir(str(folder), None)
    helper.validate_legal(SimpleNamespace(max_lora_rank=rank))
    expected = {member for _, members in STACKED.values() for member in members}
    models = module("vllm.lora.lora_model")
    models.PIN_MEMORY = torch.cuda.is_available()  # without a GPU there is nothing to pin it for
    read = models.LoRAModel.from_local_checkpoint(str(folder), expected, helper, lora_model_id=1, device="cpu")
    return as_edit({site: (layer.lora_a, layer.lora_b * layer.scaling) for site, layer in read.loras.items()})


class _Unsharded:
    """A layer on one device: of its adapter's factors it takes all."""

    def slice_lora_a_weights(self, weights: Tensor, *_: Any) -> Tensor:
        return weights

    slice_lora_b_weights = slice_lora_a_weights


def sglang_reads(folder: Path, model: PreTrainedModel, rank: int) -> LowRankEdit:
    """What is in SGLang's buffers after the adapter's first use."""
    config = module("sglang.srt.lora.lora_config").LoRAConfig(str(folder))
    load_config = module("sglang.srt.configs.load_config").LoadConfig()
    adapter = module("sglang.srt.lora.lora").LoRAAdapter("uid", config, model.config, load_config, None)
    adapter.initialize_weights_from_tensors(load_file(folder / "adapter_model.safetensors"))
    pool = _pool(module("sglang.srt.lora.mem_pool").LoRAMemoryPool, model, rank)
    assert pool.can_support(config)
    names = {kind: f"{parent}.{kind}" for kind, (parent, _) in STACKED.items()}
    modules = [
        {f"model.layers.{index}.{name}": _Unsharded() for name in names.values()} for index in range(pool.num_layer)
    ]
    pool.load_lora_weight_to_buffer("uid", 0, adapter, modules, None, None)
    read: Factors = {}
    for kind, (parent, members) in STACKED.items():
        for index in range(pool.num_layer):
            sites = [f"model.layers.{index}.{parent}.{member}" for member in members]
            rows = [linear_widths(model.get_submodule(site))[1] for site in sites]
            a, b = pool.A_buffer[kind][index][0].split(rank), pool.B_buffer[kind][index][0].split(rows)
            read |= {site: (a[i], b[i] * adapter.scaling) for i, site in enumerate(sites)}
    return as_edit(read)


def _pool(kind: Any, model: PreTrainedModel, rank: int) -> Any:
    """SGLang's memory pool as it stands on one device, for this base model; what was there before is in its buffers."""
    pool = kind.__new__(kind)
    depth = model.config.num_hidden_layers
    pool.base_model, pool.base_hf_config, pool.num_layer, pool.max_lora_rank = model, model.config, depth, rank
    pool.tp_size, pool.tp_rank, pool.lora_added_tokens_size = 1, 0, 0
    pool.target_modules, pool.strict_loading = set(STACKED), True
    pool.pin_memory_available = pool.enable_lora_overlap_loading = pool.experts_shared_outer_loras = False
    pool.embedding_A_buffer, pool.embedding_B_buffer, pool.new_embeddings_buffer = {}, {}, {}
    pool.lm_head_A_buffer, pool.lm_head_B_buffer, pool.A_buffer, pool.B_buffer = {}, {}, {}, {}
    for name, (parent, members) in STACKED.items():
        widths = [linear_widths(model.get_submodule(f"model.layers.0.{parent}.{member}")) for member in members]
        d_in, d_out = widths[0][0], sum(width for _, width in widths)
        pool.A_buffer[name] = [torch.randn(1, rank * len(members), d_in) for _ in range(depth)]
        pool.B_buffer[name] = [torch.randn(1, d_out, rank) for _ in range(depth)]
    return pool


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_the_servers_own_reader_gets_the_edit(server: str, sites: str, tmp_path: Path) -> None:
    model = deep_llama()
    edit = an_edit(model, SITES[sites])
    folder = save_lora(tmp_path / "lora", edit, model)
    read = vllm_reads(folder, 32) if server == "vllm" else sglang_reads(folder, model, 32)
    assert (logits(model, read) - logits(model, edit)).abs().max() < 1e-6


def test_vllm_finds_an_adapter_in_a_folder_by_its_name(tmp_path: Path) -> None:
    """And only for the base model under whose name it was written."""
    resolver = module("vllm.plugins.lora_resolvers.filesystem_resolver").FilesystemResolver(str(tmp_path))
    model = deep_llama()
    adapter = save_lora_among(tmp_path, an_edit(model, LONE), model, base_model_name="served")
    found = asyncio.run(resolver.resolve_lora("served", adapter.name))
    assert found.lora_path == str(adapter)
    assert asyncio.run(resolver.resolve_lora("another", adapter.name)) is None
    assert asyncio.run(resolver.resolve_lora("served", "edit-0")) is None
