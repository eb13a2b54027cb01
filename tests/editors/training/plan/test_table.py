"""Tests of `train.py plan`: what it prints, and that it needs nothing that is not on this machine."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editors.common.errors import EditorError, SiteError
from editors.making.registry import registered_methods
from editors.training.plan.strategies import STRATEGIES, GPUMemory
from editors.training.plan.table import count_gpus, smallest_card
from tests.tiny_world import TinyWorld, run


@pytest.fixture(autouse=True)
def _wide_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def without_weights(tiny_world: TinyWorld, tmp_path: Path) -> TinyWorld:
    """The tiny world, of whose model only the configuration is left."""
    folder = tmp_path / "world" / "model"
    folder.mkdir(parents=True)
    shutil.copy(tiny_world.model / "config.json", folder)
    shutil.copytree(tiny_world.model.parent / "encoder", folder.parent / "encoder")
    (folder.parent / "encoder" / "model.safetensors").unlink()
    return TinyWorld(folder, tmp_path / "no-data")


@pytest.mark.parametrize("editor", sorted(registered_methods()))
def test_every_editor_is_planned_from_configurations_alone(
    editor: str, without_weights: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    more = ("--tokens=12", "--trainer.devices=8", "--trainer.num_nodes=2", "--trainer.accelerator=cuda")
    without_weights.run("plan", root, *more, editor=editor)
    printed = capsys.readouterr().out
    assert f"{editor} for {without_weights.model} in float32, 16 GPUs: GB on each" in re.sub(r"\s+", " ", printed)
    for strategy in STRATEGIES:
        assert re.search(rf"│ {re.escape(strategy)} .*│\s+24 GB │", printed), printed
    assert "4 episodes of 1 edit(s)" in printed
    assert not root.exists()


def test_a_plan_needs_no_data_section(
    without_weights: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = without_weights.model
    run(["plan", "--config=configs/mend.yaml", f"--model.base_model.name={model}", "--gpus=2", "--model.mend.rank=8"])
    printed = capsys.readouterr().out
    assert "2 GPUs" in printed
    assert "16 episodes of 1 edit(s)" in printed
    assert "Architecture: its own files" in printed


def test_a_quantised_base_model_is_planned_without_what_cannot_shard_it(
    without_weights: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_weights.run("plan", tmp_path / "runs", "--model.base_model.quantization=nf4", "--gpus=2")
    printed = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "in nf4 and float32, 2 GPUs" in printed
    assert "ZeRO-2 │" in printed
    assert not re.search(r"│ (ZeRO-3|FSDP)", printed)


def test_sites_and_lengths_are_checked(without_weights: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with pytest.raises(SiteError, match="Candidates"):
        without_weights.run("plan", root, "--model.base_model.sites=[nowhere]")
    with pytest.raises(EditorError, match=r"tokens 600 is more than data\.max_length 512"):
        without_weights.run("plan", root, "--tokens=600")


@pytest.mark.parametrize(
    ("devices", "nodes", "count"),
    [("auto", 1, 1), (-1, 1, 1), (4, 1, 4), ("4", 2, 8), ([0, 3], 1, 2), ("0,1,5", 1, 3)],
)
def test_gpus_are_counted_as_the_trainer_would(devices: Any, nodes: int, count: int) -> None:
    assert count_gpus(SimpleNamespace(devices=devices, num_nodes=nodes)) == count


@pytest.mark.parametrize(("gigabytes", "card"), [(21.5, "24 GB"), (21.7, "48 GB"), (60, "80 GB"), (72.1, "none")])
def test_a_tenth_of_a_gpu_stays_free(gigabytes: float, card: str) -> None:
    assert smallest_card(GPUMemory(base=gigabytes * 1e9)) == card
