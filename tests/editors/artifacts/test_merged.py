"""Tests of `editors.artifacts.merged` and `editors.artifacts.checkpoint_folder`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from editors.artifacts import merged
from editors.artifacts.checkpoint_folder import CheckpointFolder
from editors.artifacts.merged import save_merged, undo_merged
from editors.base_models.loading import BaseModelConfig, load_base_model, load_skeleton, weights_hash
from editors.common.errors import ArtifactError, BaseModelError, EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import EditManifest
from tests.tiny_models import random_batch, random_edit, tiny_lm, tiny_model
from tests.tiny_seq2seq import ARCHITECTURES as ENCODER_DECODERS
from tests.tiny_seq2seq import tiny_seq2seq

TOKENS = random_batch([9, 9]).input_ids
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    answers = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    return model(input_ids=TOKENS, **answers).logits


def write_base(
    folder: Path, architecture: str = "llama", dtype: str = "float32", max_shard_size: str = "5GB"
) -> tuple[BaseModelConfig, PreTrainedModel]:
    """A base model on disk with a card and weights in another format, and the model as it is loaded."""
    make = tiny_seq2seq if architecture in ENCODER_DECODERS else tiny_model
    make(architecture, dtype=DTYPES[dtype]).save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "README.md").write_text("the base model's card")
    (folder / "pytorch_model.bin").write_bytes(b"unedited")
    (folder / "tokenizer.json").write_text("{}")
    base = BaseModelConfig(str(folder), dtype=dtype)  # type: ignore[arg-type]
    return base, load_base_model(base)


def edit_for(base: BaseModelConfig, model: PreTrainedModel, scale: float = 0.3) -> LowRankEdit:
    edit = random_edit(tiny_lm(model, num_blocks=2).site_widths(), scale=scale)
    edit.metadata = {
        "editor": "mend",
        "base_model": {"name": base.name, "revision": None, "dtype": base.dtype},
        "base_weights": weights_hash(model, torch.bfloat16),
        "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
        "created": "2026-01-02T03:04:05+00:00",
    }
    return edit


def merged_logits(model: PreTrainedModel, edit: LowRankEdit) -> Tensor:
    handle = edit.merge(model)
    found = logits(model)
    handle.undo(model)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is larger than memory cannot be loaded."""

    def refuse(_: BaseModelConfig) -> PreTrainedModel:
        raise MemoryError

    monkeypatch.setattr(merged, "load_base_model", refuse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "shard"), [("llama", "5GB"), ("gpt2", "60KB"), ("qwen2", "60KB")])
@pytest.mark.usefixtures("no_loading")
def test_folder_is_edited_without_loading_it_and_undone_to_the_last_byte(
    architecture: str, shard: str, dtype: str, tmp_path: Path
) -> None:
    """Sharded and not, tied heads (GPT-2, Qwen2) and untied, `nn.Linear` and `Conv1D`."""
    base, model = write_base(tmp_path / "base", architecture, dtype, shard)
    edit = edit_for(base, model)
    folder = save_merged(tmp_path / "merged", edit)
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    assert torch.equal(logits(reloaded), merged_logits(model, edit))
    assert (logits(reloaded) - logits(model)).abs().max() > 0.1
    assert len(list(folder.glob("*.safetensors"))) == len(list((tmp_path / "base").glob("*.safetensors")))
    restored = undo_merged(folder, tmp_path / "restored")
    expected = files_of(tmp_path / "base")
    del expected["pytorch_model.bin"]
    assert files_of(restored) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
@pytest.mark.usefixtures("no_loading")
def test_encoder_decoder_folder_is_edited_without_loading_it(architecture: str, dtype: str, tmp_path: Path) -> None:
    """T5 1.1 has a head of its own, though its configuration says that it is tied."""
    base, model = write_base(tmp_path / "base", architecture, dtype)
    edit = edit_for(base, model)
    folder = save_merged(tmp_path / "merged", edit)
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    assert (logits(reloaded) - logits(model)).abs().max() > 0.1
    # T5's `wo` is computed in float32, whatever it is stored in.
    tolerance = 0.0 if dtype == "float32" else 0.05
    torch.testing.assert_close(logits(reloaded), merged_logits(model, edit), rtol=tolerance, atol=tolerance)
    assert "model = AutoModelForSeq2SeqLM.from_pretrained" in (folder / "README.md").read_text()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.usefixtures("no_loading")
def test_t5_1_1_whose_head_is_the_embedding(stored: bool, tmp_path: Path) -> None:
    """Whether the checkpoint leaves the head out or holds it as a second copy: transformers ties it in both cases."""
    tied = tiny_seq2seq("t5_1_1")
    tied.set_output_embeddings(tied.get_input_embeddings())
    tied.save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    if stored:
        save_file(tensors | {"lm_head.weight": tensors["shared.weight"].clone()}, file, {"format": "pt"})
    base = BaseModelConfig(str(tmp_path / "base"), dtype="float32")
    model = load_base_model(base)
    edit = edit_for(base, model)
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(save_merged(tmp_path / "merged", edit)).eval()
    assert torch.equal(logits(reloaded), merged_logits(model, edit))
    assert (logits(reloaded) - logits(model)).abs().max() > 0.1


def test_a_weight_that_its_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base", dtype="float16")
    with pytest.raises(EditorError, match="too large for torch"):
        save_merged(tmp_path / "merged", edit_for(base, model, scale=1e6))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("loaded_in", DTYPES)
def test_edit_made_in_another_precision_than_the_checkpoints(loaded_in: str, tmp_path: Path) -> None:
    base, _ = write_base(tmp_path / "base")
    base = replace(base, dtype=loaded_in)  # type: ignore[arg-type]
    edit = edit_for(base, load_base_model(base))
    folder = save_merged(tmp_path / "merged", edit)
    assert all(error < 1e-4 for error in EditManifest.load(folder).export["rounding_error"].values())


def test_update_lost_by_rounding_is_reported(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base", dtype="bfloat16")
    folder = save_merged(tmp_path / "merged", edit_for(base, model, scale=1e-4))
    assert all(error > 0.5 for error in EditManifest.load(folder).export["rounding_error"].values())


def test_single_file_is_edited_where_there_are_shards_too(tmp_path: Path) -> None:
    """It is the one that transformers loads."""
    base, model = write_base(tmp_path / "base")
    shards, _ = write_base(tmp_path / "shards", max_shard_size="20KB")
    for path in Path(shards.name).glob("*safetensors*"):
        path.rename(tmp_path / "base" / path.name)
    edit = edit_for(base, model)
    save_merged(tmp_path / "merged", edit, base)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, merged_logits(model, edit))
    assert (found - logits(model)).abs().max() > 0.1


def test_names_without_the_inner_models_prefix(tmp_path: Path) -> None:
    """As GPT-2's checkpoint on the Hub has them."""
    base, model = write_base(tmp_path / "base", "gpt2")
    path = tmp_path / "base" / "model.safetensors"
    save_file({k.removeprefix("transformer."): v for k, v in load_file(path).items()}, path, {"format": "pt"})
    edit = edit_for(base, model)
    folder = save_merged(tmp_path / "merged", edit)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), merged_logits(model, edit))


def test_model_that_is_no_folder_is_loaded_and_saved_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = write_base(tmp_path / "base")
    monkeypatch.setattr(merged, "local_folder", lambda _: None)
    monkeypatch.setattr(merged, "load_tokenizer", lambda _: model.config)
    edit = edit_for(base, model)
    folder = save_merged(tmp_path / "merged", edit, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), merged_logits(model, edit))
    restored = load_base_model(BaseModelConfig(str(undo_merged(folder, tmp_path / "restored"))))
    assert weights_hash(restored) == weights_hash(model)


def test_manifest_and_card(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base")
    folder = save_merged(tmp_path / "merged", edit_for(base, model))
    manifest = EditManifest.load(folder)
    assert manifest.export["kind"] == "merged"
    assert [request.target for request in manifest.requests()] == ["Anna"]
    card = (folder / "README.md").read_text()
    assert "| Who founded Dor? | Anna |" in card
    assert (folder / "hyperedit/base_model_README.md").read_text() == "the base model's card"
    assert "revision" not in card  # none was named


# --- what is refused -------------------------------------------------------------------------------------------------


def test_other_base_model_is_refused(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base")
    edit = edit_for(base, model)
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseModelError, match=r"made for '.*base'.*, but '.*other' has other weights"):
        save_merged(tmp_path / "merged", edit, replace(base, name=str(tmp_path / "other")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "other"]


def test_base_model_of_other_shape_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base")
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    with pytest.raises(EditorError, match="GPT2LMHeadModel does not have"):
        save_merged(tmp_path / "merged", edit_for(base, model), replace(base, name=str(tmp_path / "other")))


def test_quantised_base_model_is_refused(tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="is quantised"):
        save_merged(tmp_path / "merged", edit_for(base, model))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def rename_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["x"] = tensors.pop("model.layers.3.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors")


def escape(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "missing or damaged"),
        (rename_tensor, r"no tensor 'model\.layers\.3\.mlp\.up_proj\.weight'"),
        (escape, "which is no file of this folder"),
    ],
)
def test_damaged_base_model_is_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base")
    edit = edit_for(base, model)
    damage(tmp_path / "base")
    with pytest.raises(ArtifactError, match=message):
        save_merged(tmp_path / "merged", edit)
    assert not (tmp_path / "merged").exists()


def change_weight(folder: Path) -> None:
    checkpoint = CheckpointFolder(folder)
    key = "model.layers.3.mlp.up_proj.weight"
    checkpoint.write(key, checkpoint.tensor(key) + 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_weight, r"up_proj\.weight of .* was changed after this edit"),
        (lambda folder: (folder / "hyperedit/original.safetensors").unlink(), "cannot be undone"),
        (lambda folder: save_file({}, folder / "hyperedit/original.safetensors"), "does not hold the weights"),
        (lambda folder: (folder / "hyperedit_manifest.json").unlink(), "is no exported edit"),
    ],
)
def test_undo_of_a_changed_checkpoint_is_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    base, model = write_base(tmp_path / "base")
    folder = save_merged(tmp_path / "merged", edit_for(base, model))
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        undo_merged(folder, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_write_keeps_shape_and_type(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    checkpoint = CheckpointFolder(tmp_path / "base")
    key = "model.layers.3.mlp.up_proj.weight"
    for values in (checkpoint.tensor(key).half(), checkpoint.tensor(key)[:1]):
        with pytest.raises(ArtifactError, match="is to be written there"):
            checkpoint.write(key, values)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "gptj", "phi3"])
def test_hash_of_a_folder_is_that_of_the_loaded_model(architecture: str, tmp_path: Path) -> None:
    base, model = write_base(tmp_path / "base", architecture)
    found = CheckpointFolder(tmp_path / "base").weights_hash(load_skeleton(base), torch.float32)
    assert found == weights_hash(model, torch.bfloat16)
