"""What version 0.1.0 wrote, before modules moved into floors: artifacts, checkpoints, saved configurations.

The files in `before_the_house/` are of runs of `tests.tiny_world` with that version; WORLD and RUNS stand for folders.
`expected.json` holds what it computed: the metrics of `validate` with the checkpoint, and logits of an edited model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from editors import EditRequest, load_base_model, load_editor, load_tokenizer
from tests.tiny_world import TinyWorld, run

EDITORS = ("ke", "mend", "serac")
REQUEST = EditRequest("What is the capital of Belbel?", "Lume")
QUESTION = "Which city is the seat of Belbel?"
_KEPT = Path(__file__).parent / "before_the_house"


@pytest.fixture(scope="module", params=EDITORS)
def kept(request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of one editor, with the folders of this run."""
    folder = tmp_path_factory.mktemp("kept") / request.param
    shutil.copytree(_KEPT / request.param, folder)
    for path in (folder / "artifact/config.json", folder / "config.yaml"):
        text = path.read_text().replace("WORLD/model", str(tiny_world.model))
        text = text.replace("WORLD/encoder", str(tiny_world.model.parent / "encoder"))
        path.write_text(text.replace("WORLD/data", str(tiny_world.data)).replace("RUNS", str(folder / "runs")))
    return folder


def expected(kept: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((kept / "expected.json").read_text())
    return values


@torch.no_grad()
def test_an_artifact_makes_the_edit_it_made(kept: Path) -> None:
    editor = load_editor(kept / "artifact")
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    edit = editor.edit(model, tokenizer, [REQUEST])
    with edit.applied(model):
        logits = model(**tokenizer(QUESTION, return_tensors="pt")).logits[0, -1]
    recorded = torch.tensor(expected(kept)["logits"])
    torch.testing.assert_close(logits[: len(recorded)], recorded, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # that run's callbacks were others
def test_a_checkpoint_is_validated_as_it_was(kept: Path, tiny_world: TinyWorld, tmp_path: Path) -> None:
    cli = tiny_world.run("validate", tmp_path / "runs", f"--ckpt_path={kept / 'last.ckpt'}", editor=kept.name)
    assert_same_metrics(cli.trainer.callback_metrics, expected(kept)["validation"])


def test_a_saved_configuration_still_works(kept: Path, tmp_path: Path) -> None:
    arguments = [f"--config={kept / 'config.yaml'}", f"--ckpt_path={kept / 'last.ckpt'}"]
    cli = run(["validate", *arguments, f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    assert_same_metrics(cli.trainer.callback_metrics, expected(kept)["validation"])


def assert_same_metrics(found: Any, recorded: dict[str, float]) -> None:
    values = {name: float(value) for name, value in found.items()}
    assert values == pytest.approx(recorded, rel=1e-4, abs=1e-5)
