"""A run that was cut off and resumed goes on exactly as if it had not been: same batches, same losses, same weights."""

from __future__ import annotations

import csv
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from editors.common.errors import DataError
from editors.training.run.checkpoint_io import CheckpointWriteError
from tests.lifecycle.crashes import Crash, disk_with_room
from tests.tiny_world import TinyWorld, run, run_process
from train import EditorCLI

pytestmark = pytest.mark.slow

BATCHES = 6  # of an epoch: 24 records, 4 to a batch


def checkpoints(**when: Any) -> dict[str, Any]:
    """A `ModelCheckpoint` that keeps `last.ckpt`."""
    arguments = {"save_last": True, "enable_version_counter": False, "filename": "newest", **when}
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": arguments}


@dataclass(frozen=True)
class Case:
    """A way to train and to save.

    Args:
        trainer: settings that differ from the tiny world's.
        save: when to save.
        data: settings of the data module.
    """

    trainer: dict[str, Any]
    save: dict[str, Any]
    data: dict[str, Any]

    def config(self, world: TinyWorld, root: Path, *callbacks: dict[str, Any], editor: str = "mend") -> Path:
        """Write the configuration with further callbacks."""
        config = world.config(root, editor)
        config["trainer"] |= {"max_steps": 18, "limit_val_batches": 0, **self.trainer}
        config["trainer"]["callbacks"] = [checkpoints(**self.save), *callbacks]
        config["data"]["init_args"] |= self.data
        path = root.parent / f"{root.name}{len(callbacks)}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


CASES = {
    "steps": Case({}, {"every_n_train_steps": 4}, {}),
    "epochs": Case({"max_steps": -1, "max_epochs": 3}, {"every_n_train_steps": 4}, {}),
    "accumulation": Case({"accumulate_grad_batches": 2, "max_steps": 9}, {"every_n_train_steps": 2}, {}),
    "validation": Case({"limit_val_batches": 1.0, "val_check_interval": 4}, {}, {"other_targets": 0.5}),
}


def losses(cli: EditorCLI) -> dict[int, tuple[str, ...]]:
    """The logged training losses of a run by step, as text: every digit counts."""
    with (Path(cli.trainer.default_root_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/total_loss"]]
    return {int(row["step"]): tuple(row[name] for name in sorted(row) if name.startswith("train/")) for row in rows}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def uninterrupted(case: Case, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> EditorCLI:
    """The run that nothing cut off."""
    return run(["fit", f"--config={case.config(tiny_world, tmp_path_factory.mktemp('whole') / 'runs')}"])


def assert_same_end(whole: EditorCLI, resumed: EditorCLI, first_step: int) -> None:
    """Assert that `resumed` has every step of `whole` from `first_step` on, digit by digit, and the same weights."""
    expected = {step: values for step, values in losses(whole).items() if step >= first_step}
    assert expected
    assert losses(resumed) == expected
    wanted = whole.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def saved_batches(root: Path) -> int:
    """How many batches the newest checkpoint has seen, over all epochs."""
    (path,) = root.glob("*/checkpoints/last.ckpt")
    progress = torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return progress["total"]["ready"]


def test_a_run_is_not_continued_on_other_data(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case, root = CASES["steps"], tmp_path / "runs"
    run(["fit", f"--config={case.config(tiny_world, root)}"])
    source = "{class_path: datamodules.ZsRE, init_args: {file: train.json}}"
    other = f"--data.train=[{{class_path: datamodules.Sample, init_args: {{source: {source}, repeat: 2}}}}]"
    arguments = [f"--config={case.config(tiny_world, root)}", other, "--ckpt_path=last"]
    with pytest.raises(DataError, match="trained on other data"):
        run(["fit", *arguments])
    run(["validate", *arguments, "--trainer.limit_val_batches=1"])


# 6 and 12 end an epoch; the others are in the middle of one.
@pytest.mark.parametrize("batch", [5, 11, 13])
def test_resuming_is_exact(
    case: Case, uninterrupted: EditorCLI, tiny_world: TinyWorld, tmp_path: Path, batch: int
) -> None:
    root = tmp_path / "runs"
    crash = {"class_path": "tests.lifecycle.crashes.CrashAtBatch", "init_args": {"batch": batch}}
    with pytest.raises(Crash):
        run(["fit", f"--config={case.config(tiny_world, root, crash)}"])
    assert saved_batches(root) == 4 * (batch // 4)
    resumed = run(["fit", f"--config={case.config(tiny_world, root)}", "--ckpt_path=last"])
    accumulated = uninterrupted.trainer.accumulate_grad_batches
    assert_same_end(uninterrupted, resumed, 4 * (batch // 4) // accumulated)


ANNEAL = {"class_path": "callbacks.AnnealMargins", "init_args": {"threshold": -1}}
OTHER_KIND = ("--model.serac.scope=cross_attention", "--model.serac.counterfactual=blocks", "--model.serac.blocks=2")


@pytest.mark.parametrize(
    ("editor", "callbacks", "more"),
    [("ke", [ANNEAL], ()), ("serac", [], ()), ("serac", [], OTHER_KIND)],
    ids=["ke", "serac", "serac-other-kind"],
)
def test_what_validations_of_other_editors_set_is_resumed(
    tiny_world: TinyWorld, tmp_path: Path, editor: str, callbacks: list[dict[str, Any]], more: tuple[str, ...]
) -> None:
    """KE's margins and multipliers and SERAC's threshold: with a sanity check at each start, which must set nothing."""
    often = {"limit_val_batches": 1.0, "val_check_interval": 4, "num_sanity_val_steps": 1, "max_steps": 10}
    case, root = Case(often, {}, {}), tmp_path / "runs"
    crash = {"class_path": "tests.lifecycle.crashes.CrashAtBatch", "init_args": {"batch": 9}}

    def fit(folder: Path, *further: dict[str, Any], options: tuple[str, ...] = ()) -> EditorCLI:
        config = case.config(tiny_world, folder, *callbacks, *further, editor=editor)
        return run(["fit", f"--config={config}", *more, *options])

    with pytest.raises(Crash):
        fit(root, crash)
    assert saved_batches(root) == 8
    resumed = fit(root, options=("--ckpt_path=last",))
    assert_same_end(fit(tmp_path / "whole"), resumed, 8)


@pytest.mark.parametrize("batch", [BATCHES, BATCHES + 1])
def test_resuming_at_the_end_of_an_epoch_is_exact(tiny_world: TinyWorld, tmp_path: Path, batch: int) -> None:
    case = Case({}, {"every_n_train_steps": BATCHES}, {})
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    root = tmp_path / "runs"
    crash = {"class_path": "tests.lifecycle.crashes.CrashAtBatch", "init_args": {"batch": batch}}
    with pytest.raises(Crash):
        run(["fit", f"--config={case.config(tiny_world, root, crash)}"])
    resumed = run(["fit", f"--config={case.config(tiny_world, root)}", "--ckpt_path=last"])
    assert_same_end(whole, resumed, BATCHES)


def test_resuming_after_a_kill_is_exact(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case = CASES["steps"]
    root = tmp_path / "runs"
    kill = {"class_path": "tests.lifecycle.crashes.KillAtBatch", "init_args": {"batch": 11}}
    killed = run_process(["fit", f"--config={case.config(tiny_world, root, kill)}"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run(["fit", f"--config={case.config(tiny_world, root)}", "--ckpt_path=last"])
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    assert_same_end(whole, resumed, 8)


def test_a_full_disk_keeps_the_last_checkpoint_and_resuming_is_exact(tiny_world: TinyWorld, tmp_path: Path) -> None:
    case = CASES["steps"]
    root = tmp_path / "runs"
    full = {"class_path": "tests.lifecycle.crashes.FullDiskAtBatch", "init_args": {"batch": 6}}
    config = case.config(tiny_world, root, full)
    with disk_with_room(), pytest.raises(CheckpointWriteError, match="go on with --ckpt_path last"):
        run(["fit", f"--config={config}"])
    assert saved_batches(root) == 4
    assert [path for path in root.rglob("*") if path.name.startswith(".")] == []
    resumed = run(["fit", f"--config={case.config(tiny_world, root)}", "--ckpt_path=last"])
    whole = run(["fit", f"--config={case.config(tiny_world, tmp_path / 'whole')}"])
    assert_same_end(whole, resumed, 4)
