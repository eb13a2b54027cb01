"""Tests of what `train.py --help` and `train.py VERB --help` show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datamodules import EditDataModule
from editors.methods.ke.module import KE
from editors.methods.mend.module import MEND
from editors.training.run.cli import RunCLI
from editors.training.run.help import explained, named
from editors.training.run.overview import VERBS, overview, show_overview
from tests.tiny_world import run

ROOT = Path(__file__).parents[4]


def test_the_overview_has_every_verb() -> None:
    assert list(VERBS) == list(RunCLI.subcommands())
    assert all(f"  {verb:<10}{does}\n" in overview() for verb, does in VERBS.items())


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_the_overview_ends_the_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        show_overview(arguments)
    assert (ended.value.code, capsys.readouterr().out) == (0, overview())
    for other in ([], ["fit", "--help"], ["fit"]):
        show_overview(other)


def test_the_overview_needs_no_training_library() -> None:
    script = "import runpy, sys; sys.argv = ['train.py', '--help']; runpy.run_path('train.py', run_name='__main__')"
    script = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {script}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{overview()}False\n"


def test_options_of_classes_are_explained_and_shared_ones_once() -> None:
    text = explained({"model": [KE, MEND], "data": [EditDataModule]}, {"model": ("base_model", "training")})
    for option in ("--model.ke.hidden_width", "--model.mend.rank", "--model.training.c_edit", "--data.on_leak"):
        assert text.count(f"  {option} ") == 1, option
    assert "MEND (editors.methods.mend.module.MEND):" in text
    assert "Path to a configuration file" not in text


def test_editors_are_named_by_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {class_path: editors.methods.mend.module.MEND}")
    for arguments in (["--model", "MEND"], ["--model=editors.methods.mend.module.MEND"], [f"--config={file}"]):
        assert named([KE, MEND], ["fit", *arguments, "--help"]) == [MEND]
    assert named([KE, MEND], ["fit", "--help", f"--config={tmp_path / 'none.yaml'}"]) == [KE, MEND]


def test_help_of_a_verb_has_the_options_of_the_editor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["fit", "--model=MEND", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--trainer.max_steps", "--data.episodes_per_batch", "--model.mend.rank", "--model.training.c_loc"):
        assert f"  {option} " in shown
    assert "--model.ke." not in shown
