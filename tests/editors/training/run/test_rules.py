"""Tests of what a run may not ask for, and of the checkpoint that it means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jsonargparse import Namespace

from editors.common.errors import EditorError, UsageError
from editors.training.run.rules import (
    find_checkpoint,
    needs_training,
    require_float32_network,
    require_own_batches,
    write_into_run,
)

VERBS = ("fit", "validate", "test", "export", "plan")


class Trained:
    """Says nothing about training."""


class Direct:
    """Is not trained."""

    needs_training = False


def path_of(kind: type) -> str:
    return f"{__name__}.{kind.__name__}"


@pytest.mark.parametrize("precision", [None, 32, "32-true", "bf16-mixed", "16-mixed"])
def test_precisions_that_leave_the_network_alone(precision: str | int | None) -> None:
    require_float32_network(precision)


@pytest.mark.parametrize("precision", [64, "bf16-true", "16-true", "64-true"])
def test_precisions_that_would_cast_the_network(precision: str | int) -> None:
    with pytest.raises(UsageError, match=r"must stay in float32; use 32-true"):
        require_float32_network(precision)


def test_batches_are_our_own() -> None:
    require_own_batches(0.0)
    with pytest.raises(UsageError, match=r"overfit_batches 0\.5 cannot be used"):
        require_own_batches(0.5)


@pytest.mark.parametrize("verb", VERBS)
def test_editors_are_trained_unless_they_say_otherwise(verb: str) -> None:
    assert needs_training(path_of(Trained), verb)


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_trained_can_only_be_used(verb: str) -> None:
    if verb in ("fit", "plan"):
        with pytest.raises(UsageError, match=f"{verb}: Direct needs no training, so there is nothing to train"):
            needs_training(path_of(Direct), verb)
    else:
        assert not needs_training(path_of(Direct), verb)


def test_a_checkpoint_is_needed_by_all_but_fit_and_what_needs_no_training() -> None:
    assert find_checkpoint(None, "fit", "runs", trained=True) is None
    assert find_checkpoint(None, "test", "runs", trained=False) is None
    with pytest.raises(UsageError, match=r"test needs a trained editor: give --ckpt_path FILE, .* newest run in runs"):
        find_checkpoint(None, "test", "runs", trained=True)


@pytest.mark.parametrize("trained", [True, False])
def test_a_checkpoint_that_is_named_must_exist(trained: bool, tmp_path: Path) -> None:
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for path, message in (("last", "no run in"), (str(file), "there is no such file")):
        with pytest.raises(EditorError, match=message):
            find_checkpoint(path, "test", str(tmp_path), trained=trained)
    file.parent.mkdir(parents=True)
    file.touch()
    for path in ("last", str(file)):
        assert find_checkpoint(path, "test", str(tmp_path), trained=trained) == str(file)


def test_a_training_goes_on_from_the_newest_checkpoint_if_there_is_any(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "not made yet"):
        assert find_checkpoint("last_if_any", "fit", str(root), trained=True) is None
    with pytest.raises(UsageError, match=r"last_if_any is for fit, .* for test give last"):
        find_checkpoint("last_if_any", "test", str(tmp_path), trained=True)
    for number, run in enumerate(("newer", "older")):
        file = tmp_path / run / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (100 - number, 100 - number))
    newest = str(tmp_path / "newer" / "checkpoints" / "last.ckpt")
    assert find_checkpoint("last_if_any", "fit", str(tmp_path), trained=True) == newest


def test_loggers_and_checkpoints_go_into_the_runs_folder() -> None:
    logger = Namespace(class_path="L", init_args=Namespace(save_dir="."))
    checkpoint = Namespace(class_path="C", init_args=Namespace(dirpath="runs/kept", filename="last"))
    for parts in (logger, [checkpoint, Namespace(class_path="O")], None, True):
        write_into_run(parts, "runs", "runs/now")
    assert logger.init_args.save_dir == "runs/now"
    assert checkpoint.init_args == Namespace(dirpath="runs/now/kept", filename="last")
