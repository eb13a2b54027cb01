"""An exported SERAC editor is complete: it needs nothing of the machine that it was trained on but the base model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.export import export_artifact
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import load_tokenizer
from editors.common.errors import ArtifactError, BaseModelError
from editors.lm.frozen import FrozenLM
from editors.methods.serac.module import SERAC
from editors.texts.encoders import DecoderOnlyTexts
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import new_editor, remembered
from tests.tiny_world import TinyWorld, row

REQUEST = EditRequest(row(0)["src"], row(0)["alt"])


@pytest.fixture(scope="module", params=["embedding", "subject", "cross_attention"])
def trained(request: pytest.FixtureRequest, tiny_world: TinyWorld) -> SERAC:
    """An editor whose encoder has left its published weights."""
    editor = new_editor(tiny_world, {"scope": request.param})
    with torch.no_grad():
        for parameter in editor.network.scope.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return editor


def as_if_elsewhere(artifact: Path, target: Path) -> Path:
    """A copy of the artifact that names an encoder which is not there."""
    shutil.copytree(artifact, target)
    config = json.loads((target / "config.json").read_text())
    config["editor_config"]["encoder"] = "package:nosuch/model"
    (target / "config.json").write_text(json.dumps(config))
    return target


def embeddings(network: Any) -> torch.Tensor:
    return network.scope.embed([row(number)["src"] for number in range(4)])


def test_it_loads_without_the_encoder_it_was_trained_with(trained: SERAC, tmp_path: Path) -> None:
    loaded = load_editor(as_if_elsewhere(export_artifact(trained, tmp_path / "here", {}), tmp_path / "there"))
    model, tokenizer = trained.lm.model, load_tokenizer(trained.base_model)
    with torch.no_grad():
        torch.testing.assert_close(embeddings(loaded.network), embeddings(trained.network))
        edit = loaded.edit(model, tokenizer, [REQUEST])
        wanted = remembered(trained.network, [REQUEST], [0], 1, tokenizer)
        tokens = DecoderOnlyTexts(tokenizer).batch([(row(0)["rephrase"], row(0)["alt"])], [0])
        lm = FrozenLM(replace(trained.base_model, sites=trained.lm.sites), model, tokenizer)
        torch.testing.assert_close(lm.logits(tokens, edit), lm.logits(tokens, wanted))


def test_it_survives_the_hubs_mixin_and_being_saved_twice(trained: SERAC, tmp_path: Path) -> None:
    loaded = load_editor(export_artifact(trained, tmp_path / "first", {}))
    for _ in range(2):
        loaded.save_pretrained(tmp_path / "second")
    again = LoadedEditor.from_pretrained(as_if_elsewhere(tmp_path / "second", tmp_path / "elsewhere"))
    torch.testing.assert_close(embeddings(again.network), embeddings(trained.network))


def test_no_path_of_the_training_machine_is_kept(trained: SERAC, tiny_world: TinyWorld, tmp_path: Path) -> None:
    folder = export_artifact(trained, tmp_path / "editor", {}) / "models"
    for file in folder.rglob("*"):
        assert file.is_dir() or str(tiny_world.model.parent) not in file.read_text(), file


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_encoder_is_named(trained: SERAC, tmp_path: Path, file: str) -> None:
    folder = export_artifact(trained, tmp_path / "editor", {})
    (folder / "models" / "encoder" / file).write_text("{")
    with pytest.raises(BaseModelError, match=r"scope encoder '.*models/encoder' cannot be loaded"):
        load_editor(folder)


def test_without_the_encoders_files_the_error_says_what_is_missing(trained: SERAC, tmp_path: Path) -> None:
    folder = export_artifact(trained, tmp_path / "editor", {})
    shutil.rmtree(folder / "models")
    with pytest.raises(ArtifactError, match=r"has no models/, where .*copy the whole artifact, or export it again"):
        load_editor(folder)
