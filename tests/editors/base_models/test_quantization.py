"""Tests of `editors.base_models.quantization`, and of editing a base model whose weights are packed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from callbacks.export import require_form
from editors.artifacts.editor import load_editor
from editors.artifacts.merged import save_merged
from editors.base_models import quantization
from editors.base_models.loading import (
    BaseModelConfig,
    build_skeleton,
    load_base_model,
    load_config,
    load_tokenizer,
    weights_hash,
)
from editors.base_models.quantization import is_packed, quantised_weights
from editors.common.errors import ArtifactError, BaseModelError, EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.methods.mend.module import MEND
from editors.texts.batches import TokenBatch
from editors.texts.requests import EditRequest
from editors.training.plan.strategies import _bytes
from tests.tiny_models import ARCHITECTURES, captured, random_batch, random_edit, tiny_lm, tiny_model
from tests.tiny_seq2seq import ARCHITECTURES as ENCODER_DECODERS
from tests.tiny_seq2seq import batch_of, random_pairs, tiny_seq2seq
from tests.tiny_world import TinyWorld

LENGTHS = (7, 3, 12, 5)
EDIT_SITES = 2
# Their linear layers are of a class that bitsandbytes does not know.
FOREIGN = {"falcon", "falcon_alibi"}


@pytest.fixture
def _package() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'hyperedit[quantized]'")


needs_package = pytest.mark.usefixtures("_package")


def write(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> BaseModelConfig:
    """A tiny model on disk, to be loaded quantised."""
    make = tiny_seq2seq if architecture in ENCODER_DECODERS else tiny_model
    make(architecture, dtype=dtype).save_pretrained(folder)
    return BaseModelConfig(str(folder), dtype="float32", quantization="nf4")


def texts(architecture: str) -> TokenBatch:
    return batch_of(random_pairs(LENGTHS)) if architecture in ENCODER_DECODERS else random_batch(LENGTHS)


# --- what is refused before anything is loaded -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "stored", "message"),
    [
        ("int3", {}, "quantization must be one of 'nf4', got 'int3'"),
        ("nf4", {"quantization_config": {"quant_method": "awq"}}, "is stored quantised already; leave the option out"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_it_is_loaded(
    method: Any, stored: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The folder has no weights: reading any would be another error."""
    tiny_model("llama").config.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **stored}))
    with pytest.raises(EditorError, match=message):
        load_base_model(BaseModelConfig(str(tmp_path), quantization=method))


@needs_package
@pytest.mark.parametrize("architecture", sorted(FOREIGN))
def test_a_model_of_which_nothing_would_be_packed_is_refused(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).config.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="no layer of a FalconForCausalLM to quantise: its linear layers are of a"):
        load_base_model(BaseModelConfig(str(tmp_path), quantization="nf4"))


def test_a_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(BaseModelError, match=r"x\.gguf' is a GGUF file.*save_pretrained"):
        load_base_model(BaseModelConfig(str(tmp_path / "x.gguf"), quantization="nf4"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(
        BaseModelError, match=r"'bitsandbytes', which is not installed: pip install 'hyperedit\[quantized\]'"
    ):
        load_base_model(BaseModelConfig(str(tmp_path), quantization="nf4"))


@pytest.mark.parametrize("strategy", [FSDPStrategy(), SimpleNamespace(zero_stage_3=True)], ids=["FSDP", "ZeRO-3"])
def test_strategies_that_shard_weights_are_refused(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = MEND(BaseModelConfig("nowhere", quantization="nf4"))
    monkeypatch.setattr(editor, "_trainer", SimpleNamespace(strategy=strategy))
    with pytest.raises(EditorError, match=r"quantization 'nf4' needs a strategy that keeps the base model whole: DDP"):
        editor.configure_model()


def test_easyedit_is_not_given_an_editor_for_packed_weights() -> None:
    editor = MEND(BaseModelConfig("my/llama-folder", quantization="nf4"))
    with pytest.raises(ArtifactError, match=r"was trained on quantised ones \(nf4\), which differ"):
        require_form(editor, "easyedit", None)


# --- editing ---------------------------------------------------------------------------------------------------------


def gradients(lm: FrozenLM, tokens: TokenBatch, edit: LowRankEdit) -> tuple[Tensor, list[Tensor]]:
    """Edited logits, and the gradient of their squares with respect to every factor of the edit."""
    updates = {
        s: SiteUpdate(p.u.clone().requires_grad_(), p.v.clone().requires_grad_()) for s, p in edit.updates.items()
    }
    logits = lm.logits(tokens, LowRankEdit(updates, {}))
    leaves = [factor for update in updates.values() for factor in (update.u, update.v)]
    return logits.detach(), list(torch.autograd.grad(logits.square().mean(), leaves))


def close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_package
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "t5", "bart"])
def test_edits_are_those_of_the_unpacked_weights(architecture: str, tmp_path: Path) -> None:
    """Sites, factors, edited logits and the gradients of an edit, against the same model with its weights unpacked."""
    base = write(tmp_path, architecture)
    packed = tiny_lm(load_base_model(base), num_blocks=EDIT_SITES)
    model = load_base_model(base)
    plain = tiny_lm(model.dequantize(), num_blocks=EDIT_SITES)
    assert packed.site_widths() == plain.site_widths()
    assert packed.sites == tiny_lm(load_base_model(BaseModelConfig(base.name)), num_blocks=EDIT_SITES).sites
    assert any(is_packed(packed.model.get_submodule(site).get_parameter("weight")) for site in packed.sites)

    tokens = texts(architecture)
    ours, theirs = (captured(lm, tokens, len(LENGTHS), lm.prefix([tokens])[0]) for lm in (packed, plain))
    for site in packed.sites:
        close([ours.factors[site].u, ours.factors[site].delta], [theirs.factors[site].u, theirs.factors[site].delta])
        assert ours.factors[site].delta.abs().max() > 0
    edit = random_edit(packed.site_widths(), len(LENGTHS))
    (logits, slopes), (expected, expected_slopes) = (gradients(lm, tokens, edit) for lm in (packed, plain))
    close([logits, *slopes], [expected, *expected_slopes])
    assert (logits - packed.logits(tokens)).abs().max() > 0.1, "the edit must show"


@needs_package
def test_the_hash_sees_codes_and_scales_and_survives_forward_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where bitsandbytes would repack weights for the processor."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_base_model(write(tmp_path))
    before = weights_hash(model)
    lm, tokens = tiny_lm(model), random_batch(LENGTHS)
    with torch.no_grad():
        lm.logits(tokens)
    captured(lm, tokens, len(LENGTHS))
    assert weights_hash(model) == before
    weight: Any = model.get_submodule("model.layers.0.mlp.up_proj").get_parameter("weight")
    weight.quant_state.absmax[0] *= 2
    assert weights_hash(model) != before
    weight.quant_state.absmax[0] /= 2
    assert weights_hash(model) == before
    weight.data[0] += 1
    assert weights_hash(model) != before


@needs_package
def test_float32_and_bfloat16_are_packed_alike(tmp_path: Path) -> None:
    """As without quantisation, an editor trained on the one can be used on the other."""
    base, hashes = write(tmp_path, dtype=torch.bfloat16), set()
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        model = load_base_model(replace(base, dtype=dtype))
        assert model.dtype == getattr(torch, dtype)
        hashes.add(weights_hash(model, torch.bfloat16))
    assert len(hashes) == 1


@needs_package
def test_nothing_is_merged_into_packed_weights(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    model = load_base_model(base)
    edit = random_edit(tiny_lm(model, num_blocks=1).site_widths())
    before = weights_hash(model)
    with pytest.raises(
        EditorError, match=r"proj\.weight is quantised.*LoRA adapter, or merge it into model\.dequantize"
    ):
        edit.merge(model)
    assert weights_hash(model) == before
    edit.metadata = {
        "editor": "mend",
        "base_model": {"name": base.name, "revision": None, "quantization": "nf4"},
        "base_weights": weights_hash(model, torch.bfloat16),
        "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
        "created": "2026-01-02T03:04:05+00:00",
    }
    with pytest.raises(
        BaseModelError, match=r"quantised \(nf4\), and packed weights cannot be added to; .* LoRA adapter"
    ):
        save_merged(tmp_path / "merged", edit)
    tokens = random_batch(LENGTHS)
    plain = tiny_lm(model.dequantize(), num_blocks=1)
    with edit.applied(plain.model):
        expected = plain.logits(tokens)
    edit.merge(plain.model)
    close([plain.logits(tokens)], [expected])


@needs_package
@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES, *ENCODER_DECODERS} - FOREIGN))
def test_the_plan_knows_which_weights_are_packed(architecture: str, tmp_path: Path) -> None:
    base = write(tmp_path, architecture)
    model = load_base_model(base)
    skeleton = build_skeleton(base, load_config(base))
    planned = _bytes(skeleton, {id(weight) for weight in quantised_weights(skeleton)})
    scales = sum(p.quant_state.absmax.nbytes for p in model.parameters() if is_packed(p))  # type: ignore[attr-defined]
    assert planned == _bytes(model) + scales
    assert planned < _bytes(skeleton)


@needs_package
def test_an_editor_trains_on_packed_weights_and_says_so(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = tiny_world.run("fit", root, "--model.base_model.quantization=nf4", "--trainer.max_steps=3")
    editor = load_editor(Path(run.trainer.default_root_dir) / "artifact")
    assert editor.base_model.quantization == "nf4"
    tokenizer, requests = load_tokenizer(editor.base_model), [EditRequest("Who founded Dor?", "Anna Weld")]
    assert editor.edit(load_base_model(editor.base_model), tokenizer, requests).num_episodes == 1
    plain = load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))
    with pytest.raises(ArtifactError, match=r"Trained with quantization nf4, the model given has None\. Load it as in"):
        editor.edit(plain, tokenizer, requests)


@needs_package
@pytest.mark.gpu
def test_on_a_gpu_the_weights_are_the_same(tmp_path: Path) -> None:
    model, tokens = load_base_model(write(tmp_path)), random_batch(LENGTHS)
    before, logits = weights_hash(model), tiny_lm(model).logits(tokens)
    lm = tiny_lm(model).to("cuda")
    assert weights_hash(model) == before
    torch.testing.assert_close(lm.logits(tokens.to("cuda")).cpu(), logits, rtol=1e-3, atol=1e-3)
