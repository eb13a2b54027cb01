"""Tests of `AtomicCheckpointIO`: a checkpoint is there whole or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.training.run.checkpoint_io import AtomicCheckpointIO, CheckpointWriteError
from tests.lifecycle.crashes import disk_with_room, fill_disk


def state(value: float) -> dict[str, Any]:
    return {"weights": torch.full((50_000,), value), "step": int(value)}


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    found = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert found["step"] == 1
    assert torch.equal(found["weights"], state(1)["weights"])


def test_checkpoint_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(value), path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["step"] == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, room: int) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    before = path.read_bytes()
    with disk_with_room():
        fill_disk(room)
        with pytest.raises(CheckpointWriteError, match=r"last\.ckpt cannot be written \(.*File too large"):
            AtomicCheckpointIO().save_checkpoint(state(2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Killer:
    """Kills the process that pickles it, as the out-of-memory killer does: no clean-up runs."""

    def __reduce__(self) -> tuple[type[str], tuple[()]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return str, ()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        AtomicCheckpointIO().save_checkpoint({**state(2), "last": Killer()}, path)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert path.read_bytes() == before


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match=r"name another trainer\.default_root_dir"):
        AtomicCheckpointIO().save_checkpoint(state(1), tmp_path / "file" / "last.ckpt")


def test_unsupported_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(state(1), tmp_path / "last.ckpt", storage_options={"a": 1})
