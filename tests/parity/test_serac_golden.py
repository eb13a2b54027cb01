"""SERAC's scope scores, routing and archives equal those of EasyEdit's implementation, on recorded inputs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from editors.artifacts.config import ArtifactConfig
from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.exchange import import_easyedit, save_easyedit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, weights_hash
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.counterfactual.second_model import SecondModel
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.scope import EmbeddingScope, SentenceEncoder, squared_distances
from editors.texts.requests import EditRequest
from tests.tiny_models import tiny_lm

TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
# The reference adds this to every probability before the logarithm.
EPSILON = 1.1920929e-07


class Case:
    """The recorded case, and our scope classifier with the recorded weights."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "case.json").read_text())
        self.recorded = load_file(folder / "outputs.safetensors")
        archive = torch.load(folder / "archive.pt", weights_only=True)["model"]
        encoder = SentenceEncoder(str(folder / "distilbert-tiny"), pooling="first", normalise=False)
        prefix = "classifier."
        encoder.model.load_state_dict({k.removeprefix(prefix): v for k, v in archive.items() if k.startswith(prefix)})
        self.scope = EmbeddingScope(encoder, "squared", float(archive["scale"]))
        with torch.no_grad():
            self.keys = self.scope.embed(self.facts["classifier_keys"])

    def probe(self, tag: str) -> dict[str, Any]:
        return next(probe for probe in self.facts["probes"] if probe["tag"] == tag)


@pytest.fixture(scope="module")
def case(golden: Path) -> Case:
    return Case(golden / "serac_gpt2")


def log_scores(case: Case, distance: Tensor) -> Tensor:
    return case.scope.log_score(distance, [], [])


TAGS = [*(f"probe{i}" for i in range(6)), "batch"]


@torch.no_grad()
def test_embeddings(case: Case) -> None:
    torch.testing.assert_close(case.keys, case.recorded["cls_context_embed"], **TOLERANCE)
    tests = case.scope.embed(case.probe("batch")["texts"])
    torch.testing.assert_close(tests, case.recorded["cls_test_embed"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("tag", TAGS)
def test_scores_with_every_edit(case: Case, tag: str) -> None:
    scores = log_scores(case, squared_distances(case.scope.embed(case.probe(tag)["texts"]), case.keys))
    torch.testing.assert_close(scores, case.recorded[f"{tag}/log_scores"], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("tag", TAGS)
def test_the_memory_finds_the_best_edit(case: Case, tag: str) -> None:
    memory = EditMemory(case.keys.shape[1])
    memory.write([EditRequest(**edit) for edit in case.facts["edits"]], case.keys)
    index, distance = memory.nearest(case.scope.embed(case.probe(tag)["texts"]))
    assert torch.equal(index, case.recorded[f"{tag}/best_index"])
    torch.testing.assert_close(log_scores(case, distance).exp(), case.recorded[f"{tag}/best_score"], **TOLERANCE)


def own_columns(case: Case, tag: str) -> tuple[Tensor, Tensor]:
    """The base model's logits, and the counterfactual model's of the same columns, both `[1, T, V]`."""
    base = case.recorded[f"{tag}/base_logits"]
    return base, case.recorded[f"{tag}/cf_logits"][:, -base.shape[1] :]


@pytest.mark.parametrize("tag", TAGS[:-1])
def test_soft_mixture(case: Case, tag: str) -> None:
    base, counterfactual = own_columns(case, tag)
    log_score = case.recorded[f"{tag}/best_score"].log().expand(base.shape[:-1])
    mixed = mix(base, counterfactual, log_score).exp() + EPSILON
    torch.testing.assert_close(mixed.log(), case.recorded[f"{tag}/soft_logits"], **TOLERANCE)


@pytest.mark.parametrize("tag", TAGS[:-1])
def test_hard_routing(case: Case, tag: str) -> None:
    base, counterfactual = own_columns(case, tag)
    in_scope = case.recorded[f"{tag}/best_score"] > 0.5
    assert case.probe(tag)["routed"] == ["counterfactual" if in_scope else "base"]
    expected = counterfactual if in_scope else base
    assert torch.equal(case.recorded[f"{tag}/hard_logits"], expected)


def test_exported_archive_has_the_recorded_archives_tensors(case: Case, golden: Path, tmp_path: Path) -> None:
    """Names, types and, of all but the smaller recorded counterfactual model, shapes."""
    folder = golden / "serac_gpt2"
    base = BaseModelConfig(str(folder / "gpt2-base"), dtype="float32")
    model = load_base_model(base)
    widths = tiny_lm(model, base.sites).site_widths()
    config = SERACConfig(encoder=str(folder / "distilbert-tiny"), pooling="first", distance="squared", scale=1.0)
    network = SERACNetwork(widths, config)
    network.scope.encoder.load_state_dict(case.scope.encoder.state_dict())
    facts = ArtifactConfig(
        editor="serac",
        editor_config=asdict(config),
        base_model=asdict(base),
        architecture="GPT2LMHeadModel",
        base_weights=weights_hash(model, torch.bfloat16),
        site_widths={site: list(pair) for site, pair in widths.items()},
    )
    exported = save_easyedit(tmp_path / "easyedit", LoadedEditor(facts, network))
    (_, wanted), (method, found) = (read_archive(path / "archive.pt") for path in (folder, exported))
    assert method == "SERAC"
    assert found.keys() == wanted.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, tensor in wanted.items():
        if name.startswith("classifier."):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert found["scale"].shape == wanted["scale"].shape
    assert float(found["scale"]) == pytest.approx(1.0)  # the threshold is 0.5 already


@torch.no_grad()
def test_imported_archive_scores_and_answers_as_recorded(case: Case, golden: Path, tmp_path: Path) -> None:
    """The recorded counterfactual model is smaller than the base model, so it stays a second model."""
    folder, config = golden / "serac_gpt2", case.facts["config"]
    names = {"model_name": "gpt2-base", "small_name": "gpt2-small", "cls_name": "distilbert-tiny"}
    settings = {**config, **{key: str(folder / name) for key, name in names.items()}, "supervised": True}
    hparams = tmp_path / "hparams.yaml"
    hparams.write_text(yaml.safe_dump({**settings, "alg_name": "SERAC", "freeze_cntr": False}))
    network = load_editor(import_easyedit(tmp_path / "artifact", folder / "archive.pt", hparams)).network
    assert isinstance(network, SERACNetwork)
    assert isinstance(network.counterfactual, SecondModel)
    keys = network.scope.embed(case.facts["classifier_keys"])
    for tag in TAGS[:-1]:
        probe = case.probe(tag)
        distance = squared_distances(network.scope.embed(probe["texts"]), keys)
        best = network.scope.log_score(distance, [], []).exp().max(dim=1).values
        torch.testing.assert_close(best, case.recorded[f"{tag}/best_score"], **TOLERANCE)
        assert ["counterfactual" if best > network.threshold else "base"] == probe["routed"]
        ids = network.counterfactual.tokenizer(probe["counterfactual_texts"], return_tensors="pt").input_ids
        found = network.counterfactual.model(ids).logits
        torch.testing.assert_close(found, case.recorded[f"{tag}/cf_logits"], **TOLERANCE)
