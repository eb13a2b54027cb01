"""Tests of `editors.artifacts.serving_form`: adapters are read as servers read them, and compute what the edit does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from editors.artifacts.lora import save_lora, save_lora_among, vllm_gap
from editors.artifacts.serving_form import RANKS, exact_rank, serving_form
from editors.base_models.sites import site_widths
from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from tests.serving_readers import READERS, deep_llama, read_adapter, recipe_sites
from tests.tiny_models import random_batch, random_edit, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq

MIDDLE = ["model.layers.[12].self_attn.[vo]_proj", "model.layers.[12].mlp.down_proj"]
METADATA = {
    "editor": "mend",
    "base_model": {"name": "tiny", "revision": None, "dtype": "float32"},
    "base_weights": "0" * 64,
    "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
    "created": "2026-01-02T03:04:05+00:00",
}
IDS = random_batch([9, 9]).input_ids


def an_edit(model: PreTrainedModel, sites: list[str] | None = None, rank: int = 28, last: int = 6) -> LowRankEdit:
    """As MEND makes them: the last edited block keeps fewer rows than the others."""
    edit = random_edit(site_widths(model, sites), rank=rank)
    edit.metadata = dict(METADATA)
    block = max(edit.updates, key=lambda site: int(site.split(".")[2])).split(".")[2]
    for site, update in edit.updates.items():
        if site.split(".")[2] == block:
            update.v[0, last:] = 0
    return edit


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def edited_logits(model: PreTrainedModel, edit: LowRankEdit) -> Tensor:
    with edit.applied(model):
        return logits(model)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("recipe", recipe_sites())
def test_adapters_of_the_recipes_in_every_servers_reader(recipe: str, reader: str, tmp_path: Path) -> None:
    model = deep_llama()
    edit = an_edit(model, recipe_sites()[recipe])
    wanted = edited_logits(model, edit)
    found = edited_logits(model, READERS[reader](save_lora(tmp_path / "lora", edit, model)))
    assert (wanted - logits(model)).abs().max() > 1e-3
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("architecture", "sites"), [("llama", None), ("llama", MIDDLE), ("qwen2", MIDDLE), ("gpt2", None), ("opt", None)]
)
def test_tiny_models_in_every_servers_reader(
    architecture: str, sites: list[str] | None, reader: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    edit = an_edit(model, sites) if architecture != "opt" else an_edit_of_opt(model)
    wanted = edited_logits(model, edit)
    found = edited_logits(model, READERS[reader](save_lora(tmp_path / "lora", edit, model)))
    assert (wanted - logits(model)).abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-6


def an_edit_of_opt(model: PreTrainedModel) -> LowRankEdit:
    """Its attention has an `out_proj` beside the three that are fused."""
    edit = random_edit(site_widths(model, ["model.decoder.layers.2.self_attn.k_proj", "*.3.fc1"]), rank=5)
    edit.metadata = dict(METADATA)
    return edit


@pytest.mark.parametrize("last", [1, 6])
def test_peft_finds_exactly_the_sites(last: int, tmp_path: Path) -> None:
    """It warns of keys that it misses, which is an error here."""
    model = tiny_model("llama")
    edit = an_edit(model, MIDDLE, last=last)
    wanted, before = edited_logits(model, edit), logits(model)
    adapted = PeftModel.from_pretrained(model, save_lora(tmp_path / "lora", edit, model))
    wrapped = [name for name, _ in adapted.named_modules() if name.endswith(".lora_A.default")]
    assert len(wrapped) == 2 * len(("q", "k", "v", "o", "down"))
    assert (logits(adapted) - wanted).abs().max() < 1e-5
    assert torch.equal(logits(adapted.unload()), before)


@pytest.mark.parametrize(
    ("architecture", "sites", "targets", "blocks"),
    [
        ("llama", ["*.[13].mlp.up_proj"], ["gate_proj", "up_proj"], [1, 3]),
        ("llama", ["*.1.mlp.down_proj", "*.2.self_attn.k_proj"], ["q_proj", "k_proj", "v_proj", "down_proj"], [1, 2]),
        ("gpt2", ["*.2.mlp.*"], ["mlp.c_fc", "mlp.c_proj"], [2]),  # `c_proj` alone would be the attention's too
        ("gpt2", ["*.2.mlp.c_fc"], ["c_fc"], [2]),
        ("phi3", ["*.2.mlp.*"], ["gate_up_proj", "down_proj"], [2]),
    ],
)
def test_targets_are_short_names_of_whole_groups_in_every_edited_block(
    architecture: str, sites: list[str], targets: list[str], blocks: list[int], tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    edit = random_edit(site_widths(model, sites))
    edit.metadata = dict(METADATA)
    wanted = edited_logits(model, edit)
    folder = save_lora(tmp_path / "lora", edit, model)
    config, factors = read_adapter(folder)
    assert sorted(config["target_modules"]) == sorted(targets)
    assert config["layers_to_transform"] == blocks
    assert len(factors) == len(targets) * len(blocks)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model, folder)), wanted, rtol=1e-5, atol=1e-5)


def test_sites_of_two_stacks_are_named_in_full(tmp_path: Path) -> None:
    model = tiny_seq2seq("t5")
    edit = random_edit(site_widths(model, None, 1))
    edit.metadata = dict(METADATA)
    config, factors = read_adapter(save_lora(tmp_path / "lora", edit, model))
    assert (sorted(config["target_modules"]), config["layers_to_transform"]) == (sorted(factors), None)
    assert len(factors) == len(edit.updates)


@pytest.mark.parametrize(("needed", "chosen"), [(1, 8), (8, 8), (9, 16), (28, 32), (257, 320), (512, 512)])
def test_the_rank_is_the_smallest_that_servers_know(needed: int, chosen: int) -> None:
    model = tiny_model("llama")
    form = serving_form(an_edit(model, rank=needed, last=needed), model)
    assert form.rank == chosen
    assert {u.shape[0] for u, _ in form.factors.values()} == {chosen}


def test_a_rank_may_be_given_and_must_suffice() -> None:
    model = tiny_model("llama")
    edit = an_edit(model, rank=5, last=2)
    assert exact_rank(edit) == 5
    assert serving_form(edit, model, 5).rank == 5
    with pytest.raises(EditorError, match=r"has rank 5, and rank 4 was asked for: give --rank 5"):
        serving_form(edit, model, 4)
    large = an_edit(model, rank=600, last=2)
    with pytest.raises(EditorError, match=r"has rank 600, and the largest rank of servers is 512: give --rank 600"):
        serving_form(large, model)
    assert serving_form(large, model, 600).rank == 600
    assert RANKS[-1] == 512


def test_factors_of_very_different_size_are_brought_together_without_a_changed_digit() -> None:
    """A float16 server has no number below 6e-8."""
    model = tiny_model("llama")
    edit = random_edit(site_widths(model))
    for update in edit.updates.values():
        update.u *= 3e3
        update.v *= 1e-9
    form = serving_form(edit, model)
    for site, update in edit.updates.items():
        u, v = form.factors[site]
        assert 0.2 < float(u.abs().max() / v.abs().max()) < 5
        assert torch.equal((u.mT @ v)[:4], (update.u[0].mT @ update.v[0])[:4])


def test_an_edit_of_zeros_is_an_adapter_of_zeros(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edit = an_edit(model)
    for update in edit.updates.values():
        update.v.zero_()
    folder = save_lora(tmp_path / "lora", edit, model)
    assert set(EditManifest.load(folder).export["bf16_error"].values()) == {0.0}
    assert torch.equal(logits(PeftModel.from_pretrained(model, folder)), logits(tiny_model("llama")))


def test_what_bfloat16_loses_is_in_the_manifest(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edit = an_edit(model)
    export = EditManifest.load(save_lora(tmp_path / "lora", edit, model)).export
    assert export["bf16_error"].keys() == edit.updates.keys()
    for site, error in export["bf16_error"].items():
        update = edit.updates[site].weight_delta()
        lost = edit.to(torch.bfloat16).to(torch.float32).updates[site].weight_delta() - update
        assert error == pytest.approx(float(lost.norm() / update.norm()), rel=1e-3)
        assert 1e-4 < error < 1e-2


# --- a folder of adapters --------------------------------------------------------------------------------------------


def test_adapters_lie_side_by_side_under_names_of_their_content(tmp_path: Path) -> None:
    model = tiny_model("llama")
    first, second = an_edit(model), an_edit(model, rank=3)
    paths = [save_lora_among(tmp_path, edit, model, base_model_name="served") for edit in (first, second)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        config = json.loads((path / "adapter_config.json").read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "served")
        assert EditManifest.load(path).export["name"] == path.name
    written = (paths[0] / "adapter_model.safetensors").stat().st_mtime_ns
    assert save_lora_among(tmp_path, first, model, base_model_name="served") == paths[0]
    assert (paths[0] / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert save_lora_among(tmp_path, first, model) not in paths


def test_families_without_adapters_in_vllm_are_told() -> None:
    for architecture, name in {"gpt2": "GPT-2", "gptj": "GPT-J", "gpt_neox": "GPT-NeoX", "falcon": "Falcon"}.items():
        assert f"no LoRA adapter for {name} models" in str(vllm_gap(tiny_model(architecture)))
    for architecture, name in {"t5": "T5", "bart": "BART"}.items():
        assert f"no LoRA adapter for {name} models" in str(vllm_gap(tiny_seq2seq(architecture)))
    assert [vllm_gap(tiny_model(name)) for name in ("llama", "qwen2", "gemma2", "opt")] == [None] * 4
