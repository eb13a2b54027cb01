"""An archive of EasyEdit (commit 14cea82), imported as a user does it: edited weights and logits as EasyEdit's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.exchange import import_easyedit, save_easyedit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model
from editors.edits.low_rank import LowRankEdit
from tests.parity.test_mend_golden import answers, captured
from tests.tiny_models import tiny_lm


@pytest.fixture(scope="module")
def case(golden: Path) -> Path:
    return golden / "mend_llama"


@pytest.fixture(scope="module")
def settings(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file that belongs to the archive."""
    path = tmp_path_factory.mktemp("settings") / "hparams.yaml"
    facts = json.loads((case / "case.json").read_text())["config"]
    facts |= {"alg_name": "MEND", "model_name": str(case / "llama-tiny"), "edit_lr": 1e-4}
    path.write_text(yaml.safe_dump(facts))
    return path


@pytest.fixture(scope="module")
def editor(case: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedEditor:
    """The archive as an artifact, loaded."""
    folder = tmp_path_factory.mktemp("imported") / "editor"
    return load_editor(import_easyedit(folder, case / "archive.pt", settings))


def edit_of(editor: LoadedEditor, recorded: Mapping[str, Tensor]) -> LowRankEdit:
    lm = tiny_lm(load_base_model(editor.base_model), editor.base_model.sites)
    with torch.no_grad():
        edit: LowRankEdit = editor.network(captured(lm, answers(recorded)))
    return edit


@pytest.mark.parametrize("name", ["single", "pair"])
def test_edited_weights_and_logits(editor: LoadedEditor, case: Path, name: str) -> None:
    recorded = load_file(case / f"{name}.safetensors")
    edit = edit_of(editor, recorded)
    for site, update in edit.updates.items():
        torch.testing.assert_close(update.weight_delta().mT, recorded[f"{site}.weight/update"], rtol=1e-5, atol=1e-5)
    model = load_base_model(editor.base_model)
    edit.merge(model)
    mask = recorded["attention_mask"]
    # As recorded: positions are counted over padding too.
    positions = torch.arange(mask.shape[1]).expand_as(mask)
    with torch.no_grad():
        found = model(input_ids=recorded["input_ids"], attention_mask=mask, position_ids=positions).logits
    real = mask == 1
    torch.testing.assert_close(found[real], recorded["edited_logits"][real], rtol=1e-5, atol=1e-5)


def test_exported_again_it_is_the_same_archive(editor: LoadedEditor, case: Path, tmp_path: Path) -> None:
    folder = save_easyedit(tmp_path / "easyedit", editor)
    (_, wanted), (_, found) = read_archive(case / "archive.pt"), read_archive(folder / "archive.pt")
    assert found.keys() == wanted.keys()
    used = {name: tensor for name, tensor in wanted.items() if not name.endswith("_s")}
    for name, tensor in used.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)


def test_exported_and_imported_again_it_gives_the_same_edit(editor: LoadedEditor, case: Path, tmp_path: Path) -> None:
    folder = save_easyedit(tmp_path / "easyedit", editor)
    base = BaseModelConfig(str(case / "llama-tiny"))
    again = import_easyedit(tmp_path / "again", folder / "archive.pt", folder / "hparams.yaml", base)
    recorded = load_file(case / "pair.safetensors")
    wanted, found = edit_of(editor, recorded), edit_of(load_editor(again), recorded)
    for site, update in wanted.updates.items():
        torch.testing.assert_close(found.updates[site].weight_delta(), update.weight_delta(), rtol=1e-6, atol=1e-6)
