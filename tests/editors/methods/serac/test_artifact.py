"""An exported SERAC editor is complete: it needs nothing of the machine that it was trained on but the base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.export import export_artifact
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import load_tokenizer
from editors.common.errors import ArtifactError, BaseModelError, EditorError
from editors.lm.frozen import FrozenLM
from editors.methods.serac.module import SERAC
from editors.texts.encoders import DecoderOnlyTexts
from editors.texts.requests import EditRequest
from tests.editors.conftest import without_hashes
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


@pytest.fixture(scope="module")
def exported(trained: SERAC, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_artifact(trained, tmp_path_factory.mktemp("exported") / "editor", {})


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
    folder = without_hashes(export_artifact(trained, tmp_path / "editor", {}))
    (folder / "models" / "encoder" / file).write_text("{")
    with pytest.raises(BaseModelError, match=r"scope encoder '.*models/encoder' cannot be loaded"):
        load_editor(folder)


def test_without_the_encoders_files_the_error_says_what_is_missing(trained: SERAC, tmp_path: Path) -> None:
    folder = export_artifact(trained, tmp_path / "editor", {})
    shutil.rmtree(folder / "models")
    with pytest.raises(ArtifactError, match=r"has no models/, where .*copy the whole artifact, or export it again"):
        load_editor(folder)


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_class(encoder: Path) -> None:
    """Name the class of most encoders' tokenizers: transformers makes one without any file of a vocabulary."""
    rewrite(encoder / "tokenizer_config.json", tokenizer_class="BertTokenizer")


def without_vocabulary(encoder: Path) -> None:
    with_class(encoder)
    (encoder / "tokenizer.json").unlink()


def without_words(encoder: Path) -> None:
    with_class(encoder)
    tokenizer = json.loads((encoder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    (encoder / "tokenizer.json").write_text(json.dumps(tokenizer))


ENCODERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no vocabulary": (without_vocabulary, "no vocabulary: .*tokenizer.json.* is missing or empty"),
    "no words": (without_words, "no vocabulary"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "cannot be loaded: "),
    "no special tokens": (lambda f: (f / "tokenizer_config.json").unlink(), "there is no tokenizer_config.json"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "cannot be loaded: .*config.json"),
    "a wide encoder": (lambda f: rewrite(f / "config.json", hidden_size=2**20), "do not belong together"),
    "many layers": (lambda f: rewrite(f / "config.json", num_hidden_layers=10**6), "and the file far fewer tensors"),
    "a long configuration": (lambda f: rewrite(f / "config.json", x="x" * 9 * 2**20), "more than 8 MB"),
    "a text as number": (lambda f: rewrite(f / "config.json", hidden_size="16"), "scope encoder .* cannot be loaded"),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("hashed", [True, False])
def test_an_incomplete_encoder_is_refused(exported: Path, tmp_path: Path, kind: str, hashed: bool) -> None:
    folder = shutil.copytree(exported, tmp_path / "copied")
    damage, message = ENCODERS[kind]
    damage(folder / "models" / "encoder")
    if not hashed:
        without_hashes(folder)
    with pytest.raises(EditorError, match="is missing or damaged: " if hashed else message) as refused:
        load_editor(folder)
    assert len(str(refused.value).splitlines()) == 1


def test_a_tokenizer_class_by_name_still_loads(exported: Path, tmp_path: Path) -> None:
    folder = without_hashes(shutil.copytree(exported, tmp_path / "copied"))
    with_class(folder / "models" / "encoder")
    load_editor(folder)
