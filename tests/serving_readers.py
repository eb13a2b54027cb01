"""How servers read an adapter, written anew from what they publish; each gives the edit that the server would compute.

What a server does not look at is not looked at here, and what would make it fail fails here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from tests.tiny_models import HIDDEN, VOCABULARY

_RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
Factors = dict[str, tuple[Tensor, Tensor]]
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}


def read_adapter(folder: Path) -> tuple[dict[str, Any], Factors]:
    """Configuration and, by site, `A` `[r, d_in]` and `B` `[d_out, r]`."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = dict.fromkeys(re.fullmatch(r"base_model\.model\.(.*)\.lora_[AB]\.weight", name) for name in tensors)
    sites = dict.fromkeys(match.group(1) for match in names if match)
    prefix = "base_model.model."
    factors = {
        site: (tensors[f"{prefix}{site}.lora_A.weight"], tensors[f"{prefix}{site}.lora_B.weight"]) for site in sites
    }
    assert len(tensors) == 2 * len(factors)
    return json.loads((folder / "adapter_config.json").read_text()), factors


def one_alpha(folder: Path) -> LowRankEdit:
    """llama.cpp: one alpha for the whole adapter; the rank is that of each `B`. Patterns are not read."""
    config, factors = read_adapter(folder)
    return as_edit({site: (a, b * (config["lora_alpha"] / b.shape[1])) for site, (a, b) in factors.items()})


def one_rank(folder: Path) -> LowRankEdit:
    """TensorRT-LLM: one rank and one scale, both from the configuration."""
    config, factors = read_adapter(folder)
    for a, b in factors.values():
        assert a.shape[0] == b.shape[1] == config["r"], "another rank than the configuration's"
    return as_edit({site: (a, b * (config["lora_alpha"] / config["r"])) for site, (a, b) in factors.items()})


def fused(folder: Path) -> LowRankEdit:
    """SGLang: layers of each block by their own names, fused members stacked; all in buffers of one rank."""
    config, factors = read_adapter(folder)
    rank, targets = config["r"], config["target_modules"]
    assert isinstance(targets, list), "a pattern is refused"
    wanted = {_fused_name(name.rpartition(".")[2]) for name in targets}
    read: Factors = {}
    for site, (a, _) in factors.items():
        parent, _, leaf = site.rpartition(".")
        group = _FUSED.get(_fused_name(leaf), (leaf,))
        assert _fused_name(leaf) in wanted, "no buffer for such a layer"
        if leaf == group[0]:
            members = [factors[f"{parent}.{member}"] for member in group]
            stacked = torch.cat([each for each, _ in members])
            assert stacked.shape == (len(group) * rank, a.shape[1]), "another shape than the buffer's"
            rows = torch.cat([each for _, each in members])
            widths = [len(each) for _, each in members]
            for member, block, out in zip(group, stacked.split(rank), rows.split(widths), strict=True):
                read[f"{parent}.{member}"] = (block, out * (config["lora_alpha"] / rank))
        else:
            assert f"{parent}.{group[0]}" in factors, "a member without the first of its group is left behind"
    return as_edit(read)


def _fused_name(leaf: str) -> str:
    return next((name for name, members in _FUSED.items() if leaf in members), leaf)


def as_edit(factors: Factors) -> LowRankEdit:
    """What `y + B A x` at each site is as an edit."""
    return LowRankEdit({site: SiteUpdate(a.unsqueeze(0), b.mT.unsqueeze(0)) for site, (a, b) in factors.items()})


def recipe_sites() -> dict[str, list[str]]:
    """The edit sites of each recipe that names some."""
    found = {}
    for path in sorted(_RECIPES.glob("*.yaml")):
        settings: dict[str, Any] = yaml.safe_load(path.read_text())
        sites = settings.get("model", {}).get("init_args", {}).get("base_model", {}).get("sites")
        if sites:
            found[path.stem] = sites
    return found


@cache
def deep_llama() -> PreTrainedModel:
    """A random model with thirty blocks, as the recipes' base model has; nothing may change it."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


READERS: dict[str, Callable[[Path], LowRankEdit]] = {"one alpha": one_alpha, "one rank": one_rank, "fused": fused}
