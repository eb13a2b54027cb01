"""Tests of `editors.training.run.closing`: where everything is, and the commands that come next."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.training.run.closing import closing_lines
from tests.tiny_world import TinyWorld

GIVEN = ["fit", "--config", "my file.yaml", "--trainer.max_steps=8"]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


@pytest.mark.parametrize("checkpoint", [[], ["--ckpt_path", "last"], ["--ckpt_path=last"]])
def test_what_there_is_is_named_and_what_comes_next(checkpoint: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path, "checkpoints/last.ckpt", "metrics.csv", "artifact/config.json")
    lines = closing_lines("fit", [*GIVEN, *checkpoint], folder)
    assert lines[0] == f"This run is in {folder}:"
    assert [line.split()[0] for line in lines[1:4]] == ["artifact", "checkpoints/last.ckpt", "metrics.csv"]
    assert lines[4] == "Next:"
    last = f"{folder}/checkpoints/last.ckpt"
    assert lines[5] == f"  python train.py test --config 'my file.yaml' --trainer.max_steps=8 --ckpt_path {last}"
    assert lines[6].startswith(f"  python -m editors apply {folder}/artifact --prompt ")


def test_a_test_is_followed_by_no_other_and_nothing_by_nothing(tmp_path: Path) -> None:
    assert closing_lines("test", ["test"], tmp_path) == []
    assert closing_lines("test", ["test"], write(tmp_path, "results/metrics.json")) == [
        f"This run is in {tmp_path}:",
        "  results  metrics, and plots",
    ]


def test_a_run_says_it_at_its_end(tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = tiny_world.run("fit", tmp_path / "runs", "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    shown = capsys.readouterr()
    end = shown.out[shown.out.index("This run is in") :]
    assert f"{cli.trainer.default_root_dir}:" in end
    assert "python train.py test --config=" in end
    assert "python -m editors apply" in end
    for noise in ("Tip", "TPU", "eval mode", "LeafSpec", "Loading weights", "estimate number"):
        assert noise not in shown.out + shown.err, noise
