"""Tests of `editors.artifacts.lora` and `editors.artifacts.truncation`: adapters are loaded by PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from editors.artifacts.lora import save_lora
from editors.artifacts.truncation import logit_error, truncate, truncation_error
from editors.common.errors import ArtifactError, EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from tests.tiny_models import random_batch, random_edit, tiny_lm, tiny_model
from tests.tiny_seq2seq import ARCHITECTURES as ENCODER_DECODERS
from tests.tiny_seq2seq import tiny_seq2seq

BASE = {"name": "tiny", "revision": "abc123", "dtype": "float32"}
REQUEST = {"prompt": "What is the capital | of Beldor?", "target": "Lume"}
METADATA = {
    "editor": "mend",
    "base_model": BASE,
    "base_weights": "0" * 64,
    "requests": [REQUEST],
    "created": "2026-01-02T03:04:05+00:00",
}
TOKENS = random_batch([9, 9])


def an_edit(model: PreTrainedModel, rank: int = 3, seed: int = 0) -> LowRankEdit:
    """A random edit of the last two blocks that says where it came from."""
    edit = random_edit(tiny_lm(model, num_blocks=2).site_widths(), rank=rank, seed=seed)
    edit.metadata = dict(METADATA)
    return edit


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=TOKENS.input_ids).logits


def edited_logits(model: PreTrainedModel, edit: LowRankEdit) -> Tensor:
    with edit.applied(model):
        return logits(model)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "opt", "falcon"])
def test_peft_gives_the_edits_logits_and_the_base_models_after_unloading(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    edit = an_edit(model)
    wanted, before = edited_logits(model, edit), logits(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = PeftModel.from_pretrained(model, save_lora(tmp_path / "lora", edit, model))
    torch.testing.assert_close(logits(adapted), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.1
    bare = adapted.unload()
    assert torch.equal(logits(bare), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in bare.state_dict().items())


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
@torch.no_grad()
def test_adapter_of_an_encoder_decoder_model(architecture: str, tmp_path: Path) -> None:
    model = tiny_seq2seq(architecture)
    edit = an_edit(model)
    inputs = {"input_ids": TOKENS.input_ids, "decoder_input_ids": TOKENS.input_ids[:, :4]}
    before = model(**inputs).logits
    with edit.applied(model):
        wanted = model(**inputs).logits
    folder = save_lora(tmp_path / "lora", edit, model)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    adapted = PeftModel.from_pretrained(model, folder)
    torch.testing.assert_close(adapted(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.05


def test_sites_of_different_ranks_get_one(tmp_path: Path) -> None:
    """MEND keeps fewer tokens in the last block."""
    model = tiny_model("llama")
    edit = an_edit(model, rank=5)
    for number, update in enumerate(edit.updates.values()):
        update.v[0, number:] = 0
    wanted = edited_logits(model, edit)
    folder = save_lora(tmp_path / "lora", edit, model)
    shapes = [tensor.shape for name, tensor in load_file(folder / "adapter_model.safetensors").items() if "_A" in name]
    assert [shape[0] for shape in shapes] == [8] * 6
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (8, 8, {}, {})
    export = EditManifest.load(folder).export
    assert (export["rank"], list(export["ranks"].values())) == (8, [0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model, folder)), wanted, rtol=1e-5, atol=1e-5)


def test_several_adapters_in_one_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edits = [an_edit(model, seed=1), an_edit(model, rank=2, seed=2)]
    wanted = [edited_logits(model, edit) for edit in edits]
    folders = [save_lora(tmp_path / f"{number}", edit, model) for number, edit in enumerate(edits)]
    adapted = PeftModel.from_pretrained(model, folders[0], adapter_name="first")
    adapted.load_adapter(folders[1], adapter_name="second")
    for name, expected in zip(("first", "second", "first"), (*wanted, wanted[0]), strict=True):
        adapted.set_adapter(name)
        torch.testing.assert_close(logits(adapted), expected, rtol=1e-5, atol=1e-5)


def test_composed_edits_are_one_adapter(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    composed = LowRankEdit.compose([an_edit(model, seed=1), an_edit(model, seed=2)])
    wanted = edited_logits(model, composed)
    folder = save_lora(tmp_path / "lora", composed, model)
    assert [edit["requests"] for edit in EditManifest.load(folder).edits] == [[REQUEST], [REQUEST]]
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model, folder)), wanted, rtol=1e-5, atol=1e-5)


def test_configuration_and_manifest_say_what_the_adapter_fits(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    folder = save_lora(tmp_path / "lora", an_edit(model), model)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", "abc123")
    assert (config["task_type"], config["fan_in_fan_out"]) == ("CAUSAL_LM", True)
    manifest = EditManifest.load(folder)
    assert (manifest.base_weights, manifest.base.name) == (METADATA["base_weights"], "tiny")
    assert manifest.edits == [{"editor": "mend", "requests": [REQUEST], "created": METADATA["created"]}]
    card = (folder / "README.md").read_text()
    assert "base_model: tiny\n" in card
    assert "| What is the capital \\| of Beldor? | Lume |" in card
    assert card.count("Fast Model Editing at Scale") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda edit: edit.metadata.clear(), "does not say which base model"),
        (lambda edit: edit.updates.update({"model.layers.9.mlp": edit.updates.popitem()[1]}), "which .* does not have"),
        (lambda edit: edit.updates.update(random_edit({next(iter(edit.updates)): (7, 7)}).updates), "widths"),
        (lambda edit: edit.updates.update(random_edit(dict.fromkeys(edit.updates, (32, 48)), 2).updates), "2 episodes"),
    ],
)
def test_what_cannot_be_exported_is_refused(change: object, message: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    edit = an_edit(model)
    change(edit)  # type: ignore[operator]
    with pytest.raises(EditorError, match=message):
        save_lora(tmp_path / "lora", edit, model)
    assert list(tmp_path.iterdir()) == []


def test_edits_of_different_base_models_do_not_become_one_adapter(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edits = [an_edit(model), an_edit(model)]
    edits[1].metadata["base_weights"] = "1" * 64
    with pytest.raises(EditorError, match="base models with different weights: 'tiny', 'tiny'"):
        save_lora(tmp_path / "lora", LowRankEdit.compose(edits), model)


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    save_lora(tmp_path / "lora", an_edit(model), model)
    with pytest.raises(ArtifactError, match="exists already"):
        save_lora(tmp_path / "lora", an_edit(model), model)


# --- truncation ------------------------------------------------------------------------------------------------------


def dense(edit: LowRankEdit, site: str) -> Tensor:
    return edit.updates[site].weight_delta().double()


@pytest.mark.parametrize("rank", [1, 3])
def test_truncation_is_the_best_approximation_and_says_its_error(rank: int) -> None:
    edit = an_edit(tiny_model("llama"), rank=6)
    smaller = truncate(edit, rank)
    errors = truncation_error(edit, smaller)
    for site in edit.updates:
        values = torch.linalg.svdvals(dense(edit, site))
        assert smaller.updates[site].u.shape[1] == rank
        best = float(values[rank:].norm() / values.norm())
        found = float((dense(edit, site) - dense(smaller, site)).norm() / values.norm())
        assert found == pytest.approx(best, rel=1e-4)
        assert errors[site] == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("rank", [6, 100])
def test_truncation_to_the_full_rank_changes_nothing(rank: int) -> None:
    model = tiny_model("gpt2")
    edit = an_edit(model, rank=6)
    same = truncate(edit, rank)
    assert max(truncation_error(edit, same).values()) < 1e-5
    torch.testing.assert_close(edited_logits(model, same), edited_logits(model, edit), rtol=1e-5, atol=1e-5)


def test_truncation_shrinks_an_update_of_more_rows_than_the_layer_is_wide() -> None:
    edit = an_edit(tiny_model("llama"), rank=200)
    smaller = truncate(edit, 200)
    assert {update.u.shape[1] for update in smaller.updates.values()} == {32}
    assert max(truncation_error(edit, smaller).values()) < 1e-5


def test_truncation_of_an_update_that_is_zero() -> None:
    edit = an_edit(tiny_model("llama"))
    next(iter(edit.updates.values())).v.zero_()
    errors = truncation_error(edit, truncate(edit, 1))
    assert next(iter(errors.values())) == 0


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused(rank: int) -> None:
    with pytest.raises(EditorError, match="at least 1"):
        truncate(an_edit(tiny_model("llama")), rank)


def test_logit_error_is_that_of_the_answers(tmp_path: Path) -> None:
    model = tiny_model("llama")
    edit = an_edit(model, rank=6)
    smaller = truncate(edit, 2)
    difference = edited_logits(model, edit) - edited_logits(model, smaller)
    wanted = float(difference.flatten(0, 1)[TOKENS.positions].abs().max())
    assert logit_error(tiny_lm(model), TOKENS, edit, smaller) == pytest.approx(wanted, rel=1e-3)
    assert wanted > 0.01
