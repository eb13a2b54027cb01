"""The whole life of every registered method, and what training does whatever the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from transformers import AutoModelForCausalLM

from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.exchange import save_easyedit
from editors.artifacts.editor import LoadedEditor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer, weights_hash
from editors.cli.line import main
from editors.common.errors import BaseModelError, EditorError
from editors.edits.composing import low_rank
from editors.training.module import Editor
from tests.learned_method_tester import LearnedLife, LearnedMethodTester, logged_steps
from tests.method_tester import REQUEST
from tests.tiny_world import MODELS, TinyWorld, run, write_splits

pytestmark = pytest.mark.slow

FACT = [f"--prompt={REQUEST.prompt}", f"--target={REQUEST.target}"]
FOR_EASYEDIT = ("--format=easyedit", "--model_name=my/llama")


class TestMEND(LearnedMethodTester):
    name = "mend"

    def test_export_for_easyedit(
        self, life: LearnedLife, loaded: LoadedEditor, world: TinyWorld, tmp_path: Path
    ) -> None:
        archive = self.export_as(life, world, tmp_path, *FOR_EASYEDIT) / "archive.pt"
        save_easyedit(tmp_path / "again", loaded, "my/llama")
        torch.testing.assert_close(read_archive(archive)[1], read_archive(tmp_path / "again" / "archive.pt")[1])

    def test_no_edit_of_it_is_exported_for_easyedit(
        self, life: LearnedLife, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refuse_edit_for_easyedit(life, tmp_path, capsys)


class TestSERAC(LearnedMethodTester):
    name = "serac"

    def test_this_one_is_not_exported_for_easyedit(self, life: LearnedLife, world: TinyWorld, tmp_path: Path) -> None:
        with pytest.raises(EditorError, match="the mean over all tokens"):
            self.export_as(life, world, tmp_path, *FOR_EASYEDIT)
        assert not list((tmp_path / "runs").rglob("metrics.json"))

    def test_no_edit_of_it_is_exported_for_easyedit(
        self, life: LearnedLife, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refuse_edit_for_easyedit(life, tmp_path, capsys)


class TestKE(LearnedMethodTester):
    name = "ke"

    def test_it_is_not_exported_for_easyedit(self, life: LearnedLife, world: TinyWorld, tmp_path: Path) -> None:
        with pytest.raises(EditorError, match="EasyEdit has had no KE since August 2023"):
            self.export_as(life, world, tmp_path, *FOR_EASYEDIT)
        assert not list((tmp_path / "runs").rglob("metrics.json"))

    def test_edit_for_easyedit_is_a_model(
        self, life: LearnedLife, loaded: LoadedEditor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["export", str(life.artifact), f"--output={tmp_path / 'out'}"]
        assert main([*arguments, FACT[0]]) == 2
        assert "needs both --prompt and --target" in capsys.readouterr().err
        assert main([*arguments, *FACT]) == 0
        assert "EasyEdit has had no KE since August 2023" in " ".join(capsys.readouterr().out.split())
        model = load_base_model(loaded.base_model)
        low_rank(loaded.edit(model, load_tokenizer(loaded.base_model), [REQUEST])).merge(model)
        assert weights_hash(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == weights_hash(model)


def refuse_edit_for_easyedit(life: LearnedLife, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """EasyEdit makes the edits of this method itself."""
    arguments = ["export", str(life.artifact), f"--output={folder / 'out'}"]
    assert main([*arguments, FACT[0]]) == 2
    assert "needs both --prompt and --target" in capsys.readouterr().err
    assert main([*arguments, *FACT]) == 2
    assert "--prompt and --target are for KE" in capsys.readouterr().err


def test_every_method_of_this_project_lives_here() -> None:
    assert {tester.name for tester in (TestMEND, TestSERAC, TestKE)} == set(MODELS)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_nothing_is_exported_if_the_base_model_was_changed(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    change = "--trainer.callbacks+=tests.lifecycle.crashes.ChangeBaseModel"
    with pytest.raises(BaseModelError, match=r"changed during training; they must stay frozen\. Look for a callback"):
        tiny_world.run("fit", root, change, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    assert list(root.rglob("artifact")) == []
    # The checkpoint names the weights that training started with, so that it is not mistaken for the others'.
    (last,) = root.rglob("last.ckpt")
    fresh = load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))
    assert torch.load(last, weights_only=True)["base_weights"] == weights_hash(fresh, torch.bfloat16)


# --- which run is continued ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_last_checkpoint_is_the_newest_whether_or_not_validation_improved(
    tiny_world: TinyWorld, tmp_path: Path, mode: str
) -> None:
    config = tiny_world.config(tmp_path / "runs")
    config["trainer"]["callbacks"][0]["init_args"]["mode"] = mode
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    cli = run(["fit", f"--config={path}"])
    last = Path(cli.trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    assert (
        torch.load(last, weights_only=True)["global_step"] == cli.trainer.global_step == config["trainer"]["max_steps"]
    )


def test_there_must_be_a_run_to_continue(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(EditorError, match=r"no run in .* has a checkpoint; start one without"):
        tiny_world.run("fit", tmp_path / "runs", "--ckpt_path=last")


def test_the_newest_state_is_saved_as_often_as_asked_and_a_first_run_needs_no_checkpoint(
    tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[str, int]] = []
    save = Trainer.save_checkpoint

    def told(trainer: Trainer, path: str | Path, *arguments: Any, **more: Any) -> None:
        saved.append((Path(path).name, trainer.global_step))
        save(trainer, path, *arguments, **more)

    monkeypatch.setattr(Trainer, "save_checkpoint", told)
    root, often = tmp_path / "runs", ("--trainer.checkpoint_every=2", "--ckpt_path=last_if_any")
    short = ("--trainer.val_check_interval=3", "--trainer.limit_val_batches=1")
    tiny_world.run("fit", root, "--trainer.max_steps=5", *often, *short)
    # At the third step there is a validation.
    steps = [step for name, step in saved if name == "last.ckpt"]
    assert {2, 3, 4} <= set(steps)
    assert 1 not in steps
    begun = max(steps)
    resumed = tiny_world.run("fit", root, "--trainer.max_steps=8", *often, *short)
    assert logged_steps(Path(resumed.trainer.default_root_dir)) == list(range(begun, 8))
    with pytest.raises(EditorError, match=r"trainer\.checkpoint_every must be at least 1"):
        tiny_world.run("fit", root, "--trainer.checkpoint_every=0")


def test_fast_dev_run_trains_one_batch_and_leaves_the_other_runs_alone(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    short = ("--trainer.val_check_interval=1", "--trainer.limit_val_batches=1")
    tiny_world.run("fit", root, "--trainer.max_steps=2", *short)
    trial = tiny_world.run("fit", root, "--trainer.fast_dev_run=true")
    assert trial.trainer.global_step == 1
    assert not [
        path for path in Path(trial.trainer.default_root_dir).rglob("*") if path.suffix in (".ckpt", ".safetensors")
    ]
    resumed = tiny_world.run("fit", root, "--ckpt_path=last", "--trainer.max_steps=3", *short)
    assert logged_steps(Path(resumed.trainer.default_root_dir)) == [2]


@pytest.mark.parametrize(("dtype", "warned"), [("float16", True), ("float32", False)])
def test_training_a_float16_model_without_loss_scaling_is_warned_about(
    tiny_world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str, warned: bool
) -> None:
    tiny_world.run("fit", tmp_path / "runs", "--trainer.fast_dev_run=true", f"--model.base_model.dtype={dtype}")
    assert ("trainer.precision 32-true does not scale the loss" in caplog.text) is warned


def test_no_logger_decides_where_the_run_keeps_its_files(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root, short = tmp_path / "runs", "--trainer.limit_val_batches=1"
    board = ("--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger", "--trainer.logger.save_dir=.")
    first = tiny_world.run("fit", root, *board, "--trainer.max_steps=2", "--trainer.val_check_interval=2", short)
    folder = Path(first.trainer.default_root_dir)
    assert list(folder.rglob("events*"))
    assert list(folder.rglob("config.yaml"))[-1] == folder / "config.yaml"
    assert list(folder.rglob("last.ckpt")) == [folder / "checkpoints" / "last.ckpt"]
    resumed = tiny_world.run("fit", root, *board, "--ckpt_path=last", "--trainer.max_steps=3", short)
    assert resumed.trainer.global_step == 3
    finished = tiny_world.run("fit", root, *board, "--ckpt_path=last", "--trainer.max_steps=3", short)
    assert (Path(finished.trainer.default_root_dir) / "config.yaml").is_file()
    assert (Path(finished.trainer.default_root_dir) / "artifact").is_dir()


# --- precision -------------------------------------------------------------------------------------------------------


def test_mixed_precision_trains_a_float32_hypernetwork(tiny_world: TinyWorld, tmp_path: Path) -> None:
    short = ("--trainer.precision=bf16-mixed", "--trainer.max_steps=2", "--trainer.limit_val_batches=1")
    cli = tiny_world.run("fit", tmp_path / "runs", *short)
    assert cli.trainer.global_step == 2
    state = cli.model.network.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_precision_that_casts_the_hypernetwork_is_refused(
    tiny_world: TinyWorld, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(EditorError, match=rf"'{precision}' would cast the hypernetwork.*model\.base_model\.dtype"):
        tiny_world.run("fit", tmp_path / "runs", f"--trainer.precision={precision}")
    assert not (tmp_path / "runs").exists()


# --- gradient accumulation -------------------------------------------------------------------------------------------


def accumulated(world: TinyWorld, tmp_path: Path, batches: int, *more: str) -> Editor:
    """The editor after 3 steps over the same 8 records each, `batches` to a step."""
    data = write_splits(tmp_path / "data", {"train": 8, "val": 2, "test": 2})
    cli = world.run(
        "fit",
        tmp_path / f"{batches}-runs",
        f"--data.path={data}",
        f"--data.episodes_per_batch={8 // batches}",
        f"--trainer.accumulate_grad_batches={batches}",
        "--trainer.max_steps=3",
        "--trainer.limit_val_batches=0",
        "--trainer.callbacks=null",
        "--trainer.logger=false",
        *more,
    )
    return cli.model


def test_accumulation_equals_a_large_batch_without_a_normaliser(tiny_world: TinyWorld, tmp_path: Path) -> None:
    one, two = (accumulated(tiny_world, tmp_path, n, "--model.mend.normalise=false") for n in (1, 2))
    for name, weight in one.network.state_dict().items():
        torch.testing.assert_close(two.network.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_accumulation_gathers_the_same_statistics_with_a_normaliser(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """The first half of a step is normalised before the second half is seen, so weights differ; statistics do not."""
    one, two = (accumulated(tiny_world, tmp_path, n).network.state_dict() for n in (1, 2))
    statistics = [name for name in one if name.endswith((".mean", ".squared_deviation", ".count"))]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(one[name], two[name]) for name in one if name not in statistics)
