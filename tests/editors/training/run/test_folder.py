"""Tests of `editors.training.run.folder`: no run writes into another's folder, and the newest one is continued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from editors.common.errors import EditorError
from editors.training.run.folder import forget_run_folder, last_checkpoint, new_run_folder, place_in_run, runs_root
from tests.tiny_world import RUN_FOLDER_VARIABLE, as_from_a_shell


@pytest.fixture(autouse=True)
def shell() -> Iterator[None]:
    """Leave the environment as it was."""
    with as_from_a_shell():
        yield


def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    folders = []
    for _ in range(4):
        folders.append(new_run_folder(tmp_path / "runs"))
        (folders[-1] / "config.yaml").touch()
        forget_run_folder()
    assert len(set(folders)) == 4
    assert all(folder.is_dir() and folder.parent == tmp_path / "runs" for folder in folders)


def test_processes_of_a_run_share_its_folder(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path)
    assert os.environ[RUN_FOLDER_VARIABLE] == str(folder)
    assert new_run_folder(tmp_path) == folder


def test_forgetting_is_complete_and_may_be_repeated(tmp_path: Path) -> None:
    new_run_folder(tmp_path)
    for _ in range(2):
        forget_run_folder()
        assert RUN_FOLDER_VARIABLE not in os.environ


@pytest.mark.parametrize("file", [None, "lightning_logs/version_0/events", ".hidden"])
def test_folder_of_a_failed_start_is_removed_with_what_loggers_wrote(tmp_path: Path, file: str | None) -> None:
    folder = new_run_folder(tmp_path)
    if file:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    forget_run_folder(failed=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_run_that_started_stays_as_it_is(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").touch()
    forget_run_folder(failed=True)
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints").is_dir()


def test_folder_that_another_process_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(tmp_path))
    new_run_folder(tmp_path / "other")
    forget_run_folder(failed=True)
    assert tmp_path.is_dir()


def test_folder_of_a_run_that_ended_well_stays_whatever_is_in_it(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path)
    forget_run_folder()
    assert folder.is_dir()


def checkpoint(folder: Path, age: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def test_last_checkpoint_is_the_newest_written(tmp_path: Path) -> None:
    checkpoint(tmp_path / "2026-01-03", age=50)
    newest = checkpoint(tmp_path / "2026-01-01", age=0)
    (tmp_path / "2026-01-09" / "checkpoints").mkdir(parents=True)
    assert last_checkpoint(tmp_path) == newest


def test_last_checkpoint_of_a_run_is_its_own(tmp_path: Path) -> None:
    own = checkpoint(tmp_path / "first", age=50)
    checkpoint(tmp_path / "second", age=0)
    (tmp_path / "first" / "config.yaml").touch()
    assert last_checkpoint(tmp_path / "first") == own


def test_there_must_be_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EditorError, match=r"no run in .* has a checkpoint"):
        last_checkpoint(tmp_path)


def test_a_saved_configuration_makes_its_runs_beside_the_first(tmp_path: Path) -> None:
    assert runs_root(tmp_path) == tmp_path
    (tmp_path / "config.yaml").touch()
    assert runs_root(tmp_path) == tmp_path.parent


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("runs/mend", "runs/mend/NEW"),
        ("runs/mend/logs", "runs/mend/NEW/logs"),
        ("logs", "runs/mend/NEW/logs"),
        (".", "runs/mend/NEW"),
        ("runs/mender", "runs/mend/NEW/runs/mender"),
        ("/elsewhere/logs", "/elsewhere/logs"),
    ],
)
def test_paths_of_the_configuration_lie_in_the_run(path: str, place: str) -> None:
    assert place_in_run(path, "runs/mend", "runs/mend/NEW") == place
