"""Tests of `AtomicCheckpointIO`: a checkpoint is there whole or not at all, and is read whole or not at all."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.training.run.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointReadError,
    CheckpointWriteError,
    require_checkpoint,
)
from tests.bombs import Bomb
from tests.lifecycle.crashes import disk_with_room, fill_disk


def state(value: float) -> dict[str, Any]:
    step = {"global_step": int(value), "epoch": 0, "pytorch-lightning_version": "2.6.6", "loops": {}}
    return {"state_dict": {"weights": torch.full((50_000,), value)}, **step}


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(state(1), path)
    found = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert found["global_step"] == 1
    assert torch.equal(found["state_dict"]["weights"], state(1)["state_dict"]["weights"])


def test_checkpoint_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint(state(value), path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["global_step"] == 2
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


# --- reading ---------------------------------------------------------------------------------------------------------


def saved(**values: Any) -> Callable[[Path], Any]:
    """A checkpoint with other values; `...` leaves one out."""

    def save(path: Path) -> None:
        torch.save({key: value for key, value in (state(1) | values).items() if value is not ...}, path)

    return save


def compressed(path: Path) -> None:
    torch.save(state(1), path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NO_ZIP = "cannot be read as a file of torch.save: File is not a zip file"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), NO_ZIP),
    "text": (lambda path: path.write_text("weights"), NO_ZIP),
    "cut": (lambda path: (saved()(path), path.write_bytes(path.read_bytes()[:-99])), NO_ZIP),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "pipe": (os.mkfifo, "is no file"),
    "nothing": (lambda _: None, "is no file"),
    "compressed": (compressed, "holds compressed members"),
    "list": (lambda path: torch.save([1], path), "holds a list, not a mapping"),
    "no weights": (saved(state_dict=...), "it lacks state_dict"),
    "weights in a list": (saved(state_dict=[1]), "its state_dict is a list, not a dict"),
    "lists as weights": (saved(state_dict={"a": [1]}), "its state_dict does not hold tensors by name"),
    "no progress": (saved(loops=...), "it lacks loops"),
    "a text as step": (saved(global_step="2"), "its global_step is a str, not a int"),
    "a step below 0": (saved(global_step=-3), "its global_step is -3"),
    "a huge step": (saved(global_step=10**30), "its global_step is 1000000"),
    "optimiser": (saved(optimizer_states={}), "its optimizer_states is a dict, not a list"),
    "deep": (saved(more=nested(300)), "it is nested more than 50 deep"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "last.ckpt"
    make, message = BROKEN[kind]
    make(path)
    with pytest.raises(CheckpointReadError, match=message) as refused:
        AtomicCheckpointIO().load_checkpoint(path)
    assert len(str(refused.value).splitlines()) == 1
    assert "another checkpoint of the run" in str(refused.value)


def test_nothing_in_a_checkpoint_is_executed_unless_asked_for(tmp_path: Path) -> None:
    path, bomb = tmp_path / "last.ckpt", Bomb(tmp_path / "went_off")
    torch.save(state(1) | {"more": bomb}, path)
    with pytest.raises(CheckpointReadError, match=r"is not unpickled: .*If you trust it, give --weights_only false"):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not bomb.went_off
    AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert bomb.went_off


def test_a_wrong_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """What changes nothing is the room between two parts."""
    path = tmp_path / "last.ckpt"
    small = state(1) | {"state_dict": {"weights": torch.arange(500.0)}}
    AtomicCheckpointIO().save_checkpoint(small, path)
    whole, refused = path.read_bytes(), 0
    places = range(0, len(whole), 37)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            require_checkpoint(path)
            found = AtomicCheckpointIO().load_checkpoint(path)
        except CheckpointReadError:
            refused += 1
        else:
            assert torch.equal(found.pop("state_dict")["weights"], small["state_dict"]["weights"])
            assert found == {key: value for key, value in small.items() if key != "state_dict"}
    assert refused > 0.7 * len(places)
