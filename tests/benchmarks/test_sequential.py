"""Edits in force together, of the tiny world: by weight updates and by a memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.sequential import main, sequential_edits
from callbacks.export import export_artifact
from datamodules import ZsRE
from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.making.registry import registered_methods
from editors.texts.batches import collate_texts, encode_answers
from editors.texts.requests import EditRequest
from tests.tiny_models import tiny_lm
from tests.tiny_world import MODELS, TinyWorld


@pytest.fixture(scope="module", params=["mend", "serac"])
def artifact(request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained exported editor."""
    arguments = MODELS[request.param](tiny_world.model)["init_args"]
    module = registered_methods()[request.param].load_module()(arguments.pop("base_model"), **arguments)
    module.configure_model()
    return export_artifact(module, tmp_path_factory.mktemp("sequential") / "artifact", {})


@torch.no_grad()
def test_points_are_those_of_all_edits_in_force_together(artifact: Path, tiny_world: TinyWorld) -> None:
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    records = ZsRE("test.json").read(tiny_world.data, skip_invalid=False)[:4]
    one, four = sequential_edits(editor, model, tokenizer, records, [1, 4], scored=2)
    assert (one.edits, four.edits) == (1, 4)
    edit = editor.edit(model, tokenizer, [EditRequest(r.prompt, r.target_new) for r in records])
    lm = tiny_lm(model, list(editor.config.site_widths))

    def share(prompt: str, answer: str, *, kept: bool) -> float:
        tokens = collate_texts(encode_answers(tokenizer, [(prompt, answer)]), [0], 2)
        wanted = lm.logits(tokens).argmax(-1) if kept else tokens.targets
        return float((lm.logits(tokens, edit).argmax(-1) == wanted).float().mean())

    scored = (records[0], records[2])
    reliability = [share(r.prompt, r.target_new, kept=False) for r in scored]
    generality = [share(r.rephrases[0], r.target_new, kept=False) for r in scored]
    locality = [share(r.locality[0].prompt, r.locality[0].answer, kept=True) for r in scored]
    found = (four.reliability, four.generality, four.locality)
    assert found == pytest.approx([sum(values) / 2 for values in (reliability, generality, locality)])


def test_the_command_writes_a_table_and_a_picture(
    artifact: Path, tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources: dict[str, Any] = {
        split: [{"class_path": "datamodules.ZsRE", "init_args": {"file": f"{split}.json"}}]
        for split in ("train", "val", "test")
    }
    config = {"data": {"class_path": "datamodules.EditDataModule", "init_args": {"path": ".", **sources}}}
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    data = ["--data", str(tmp_path / "data.yaml"), "--path", str(tiny_world.data)]
    main([str(artifact), *data, "--counts", "1", "2", "1000", "--scored=2", f"--output={tmp_path / 'points.json'}"])
    assert "Edits in force together" in capsys.readouterr().out
    points = json.loads((tmp_path / "points.json").read_text())["points"]
    assert [point["edits"] for point in points] == [1, 2, 8]
    assert all(0 <= point[name] <= 1 for point in points for name in ("reliability", "generality", "locality"))
    assert (tmp_path / "points.png").stat().st_size > 0
