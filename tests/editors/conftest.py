"""A trained editor and its artifact, shared by the tests of exports and of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from callbacks.export import export_artifact
from editors.base_models.loading import BaseModelConfig
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.requests import EditRequest
from tests.tiny_world import TinyWorld, row


def without_hashes(artifact: Path) -> Path:
    """Make an artifact one of an earlier version, which says nothing of its files' content. Returns it."""
    path = artifact / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key != "hashes"}
    path.write_text(json.dumps(values))
    return artifact


METRICS = {"reliability/teacher_forced/token_accuracy": 0.875, "locality/teacher_forced/token_agreement": 0.5}
REQUESTS = [EditRequest(row(n)["src"], row(n)["alt"]) for n in range(4)]


@pytest.fixture(scope="session")
def editor(tiny_world: TinyWorld) -> MEND:
    """An editor that has seen some rows and whose every parameter matters; nothing may change it."""
    return trained(MEND(BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2), TINY))


TINY = MENDConfig(rank=8, edit_rate=0.05)


def trained(editor: MEND) -> MEND:
    """`editor` as if it were trained: every parameter moved, statistics of some rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        editor.configure_model()
        for parameter in editor.network.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    with torch.no_grad():
        editor.network.make(editor.lm, editor.lm.read([[request] for request in REQUESTS]))
    return editor.eval()


@pytest.fixture(scope="session")
def artifact(editor: MEND, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported editor; tests that damage it take a copy."""
    return export_artifact(
        editor, tmp_path_factory.mktemp("artifact") / "editor", {"metrics": METRICS, "seed": "7", "step": 40}
    )
