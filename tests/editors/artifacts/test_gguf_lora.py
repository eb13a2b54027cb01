"""Tests of `editors.artifacts.gguf_lora`: the file is read with the package `gguf`, by the rules of llama.cpp."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from editors.artifacts.gguf_lora import save_gguf_lora
from editors.base_models.sites import is_linear, site_widths
from editors.common.errors import ArtifactError, EditorError, UsageError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from tests.serving_readers import as_edit
from tests.tiny_models import random_batch, random_edit, tiny_model

METADATA = {
    "editor": "mend",
    "base_model": {"name": "tiny", "revision": None, "dtype": "float32"},
    "base_weights": "0" * 64,
    "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
    "created": "2026-01-02T03:04:05+00:00",
}
IDS = random_batch([9, 9]).input_ids


def an_edit(model: PreTrainedModel, sites: list[str] | None = None) -> LowRankEdit:
    """Of different ranks: one alpha for all is what llama.cpp has."""
    edit = random_edit(site_widths(model, sites, 2), rank=6)
    edit.metadata = dict(METADATA)
    next(iter(edit.updates.values())).v[0, 2:] = 0
    return edit


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=IDS).logits


def as_llama_cpp_reads_it(file: Path, model: PreTrainedModel) -> LowRankEdit:
    """`scale = alpha / rank`, the rank of each `lora_b`; names and rows as in a base model that was converted."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == fields["general.architecture"])
    table = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    known = {table.get_name(name): name for name, module in model.named_modules() if is_linear(module)}
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    factors = {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            weight = name.removesuffix(".lora_a")
            b = tensors[f"{weight}.lora_b"]
            site = known[weight.removesuffix(".weight")]
            if fields["general.architecture"] == "llama":
                b = _rows_of_transformers(b, site, model)
            factors[site] = (a, b * (fields["adapter.lora.alpha"] / b.shape[1]))
    assert 2 * len(factors) == len(tensors)
    return as_edit(factors)


def _rows_of_transformers(b: Tensor, site: str, model: PreTrainedModel) -> Tensor:
    """What transformers does with the weights of a GGUF file."""
    heads = model.config.num_attention_heads
    others = {"q_proj": heads, "k_proj": model.config.num_key_value_heads}.get(site.rpartition(".")[2])
    if others is None:
        return b
    return torch.from_numpy(LlamaTensorProcessor({})._reverse_permute_weights(b.numpy(), heads, others).copy())


@pytest.mark.parametrize(
    ("architecture", "sites"),
    [
        ("llama", None),
        ("llama", ["*.[12].self_attn.*_proj", "*.[12].mlp.down_proj"]),
        ("mistral", ["*.2.self_attn.[qk]_proj"]),
        ("qwen2", ["*.[12].self_attn.*_proj"]),
        ("qwen3", ["*.[12].self_attn.*_proj", "*.2.mlp.*"]),
        ("gemma2", ["*.[12].self_attn.*_proj", "*.2.mlp.*"]),
        ("gemma3", ["*.[12].self_attn.*_proj", "*.2.mlp.*"]),
        ("phi3", ["*.[12].self_attn.*_proj", "*.2.mlp.*"]),
        ("gpt2", ["*.[12].attn.*", "*.2.mlp.*"]),
        ("gpt_neox", None),
        ("falcon", None),
    ],
)
def test_llama_cpp_computes_the_edit(architecture: str, sites: list[str] | None, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    edit = an_edit(model, sites)
    with edit.applied(model):
        wanted = logits(model)
    folder = save_gguf_lora(tmp_path / "lora", edit, model)
    export = EditManifest.load(folder).export
    assert (export["kind"], export["rank"]) == ("gguf-lora", 8)
    file = folder / f"{export['name']}.gguf"
    read = as_llama_cpp_reads_it(file, model)
    assert read.updates.keys() == edit.updates.keys()
    with read.applied(model):
        found = logits(model)
    assert (wanted - logits(model)).abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max()
    assert f"--lora {file.name}" in (folder / "README.md").read_text()


def test_rows_that_llama_cpp_sorts_are_sorted(tmp_path: Path) -> None:
    """Otherwise the test above would say nothing of them."""
    model = tiny_model("llama")
    edit = an_edit(model, ["*.2.self_attn.k_proj"])
    folder = save_gguf_lora(tmp_path / "lora", edit, model)
    (file,) = folder.glob("*.gguf")
    (b,) = (torch.from_numpy(np.array(t.data)) for t in gguf.GGUFReader(file).tensors if t.name.endswith("lora_b"))
    wanted = next(iter(edit.updates.values())).v[0].mT
    assert not torch.equal(b[:, :2] / b[0, 0], wanted[:, :2] / wanted[0, 0])
    torch.testing.assert_close(b[:, 0].sort().values / b[0, 0].abs(), wanted[:, 0].sort().values / wanted[0, 0].abs())


@pytest.mark.parametrize(
    ("architecture", "sites", "message"),
    [
        ("gptj", None, "layout of 'gptj' models is not known here; known are falcon, .*Write a merged model"),
        ("gpt_neox", ["*.2.attention.query_key_value"], "in a layout that is not known here; edit other layers"),
        ("falcon", ["*.2.self_attention.query_key_value"], "in a layout that is not known here; edit other layers"),
    ],
)
def test_layouts_that_are_not_known_are_refused(
    architecture: str, sites: list[str] | None, message: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    with pytest.raises(EditorError, match=message):
        save_gguf_lora(tmp_path / "lora", an_edit(model, sites), model)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_and_existing_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        save_gguf_lora(tmp_path, an_edit(model), model)
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install -e \"\.\[gguf\]\""):
        save_gguf_lora(tmp_path / "lora", an_edit(model), model)
