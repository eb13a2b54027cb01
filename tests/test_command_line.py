"""Tests of the command line: what it says when something is wrong, its help, and every configuration that ships."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.fabric.utilities.imports import RequirementCache
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar

from callbacks.watchdog import Watchdog
from editors.artifacts.editor import load_editor
from editors.common.errors import EditorError, SiteError
from editors.common.exit_codes import ExitCode
from editors.methods.mend.module import MEND
from editors.training.run.checkpoint_io import AtomicCheckpointIO
from editors.training.run.errors import ConfigurationError, short_message
from tests.tiny_world import RUN_FOLDER_VARIABLE, TinyWorld, as_from_a_shell, row, run, run_process
from train import command_line, main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# A whole message is what fits on a few lines of a terminal.
SHORT = 600
# A version that no package has.
NEVER = "99999"


class Untrained(MEND):
    """A network that is good enough as it is made."""

    needs_training = False


UNTRAINED = "--model=tests.test_command_line.Untrained"


# --- errors ----------------------------------------------------------------------------------------------------------


def broken_rows(folder: Path) -> None:
    rows = [
        row(1),
        {**row(2), "alt": ""},
        {**row(3), "subject": "Nowhere"},
        {k: v for k, v in row(4).items() if k != "loc"},
    ]
    (folder / "train.json").write_text(json.dumps(rows))


def no_json(folder: Path) -> None:
    (folder / "train.json").write_text('[{"subject": ')


def leaking_rows(folder: Path) -> None:
    rows = [json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test")]
    (folder / "test.json").write_text(json.dumps([rows[0][5], *rows[1]]))


def nothing(folder: Path) -> None:
    """Leave the data as they are."""


def foreign_encodings(folder: Path) -> None:
    (folder / "latin.yaml").write_bytes("# Zürich\nseed_everything: 3\n".encode("latin-1"))
    (folder / "wide.yaml").write_bytes("seed_everything: 3\n".encode("utf-16"))
    (folder / "built_on.yaml").write_text("config: [latin.yaml]\n")


def early_stopping(**init_args: Any) -> list[str]:
    """Arguments that stop early, at the first validation."""
    callback = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": init_args}
    return [f"--trainer.callbacks={json.dumps([callback])}", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]


SERAC_EDITOR = ["--model=editors.methods.serac.module.SERAC", "--model.base_model.name=./no/such/model"]
NO_SUCH_MODEL = "--model.base_model.name=./no/such/model"
MISTAKES: dict[str, tuple[list[str], Callable[[Path], None], list[str]]] = {
    # name: (further arguments, what is done to the data, what the message must hold)
    "key of the trainer": (["--trainer.max_step=3"], nothing, ["trainer.max_step", "'trainer.max_steps'"]),
    "key of the trainer in YAML": (["--trainer={max_step: 3}"], nothing, ["'trainer.max_step'", "'trainer.max_steps'"]),
    "key of the editor": (
        ["--model.training.learning_rat=1"],
        nothing,
        ["--training.learning_rat=1; did you mean 'training.learning_rate'"],
    ),
    "key of the network": (["--model.mend.rnk=1"], nothing, ["mend.rnk", "did you mean 'mend.rank'"]),
    "abbreviated key": (["--model.mend.ran=8"], nothing, ["mend.ran=8; did you mean 'mend.rank'"]),
    "key of the data": (["--data.pth=x"], nothing, ["'pth'", "EditDataModule", "did you mean 'path'"]),
    "key of a source": (
        ["--data.train+={class_path: datamodules.ZsRE, init_args: {fle: x}}"],
        nothing,
        ["data.train", "'fle'", "did you mean 'file'"],
    ),
    "removed key of the data": (
        ["--data.padding_side=left"],
        nothing,
        ["'padding_side'", "EditDataModule", "it was removed because it changed no result: leave it out"],
    ),
    "removed key of a source": (
        ["--data.train=[{class_path: datamodules.ZsRE, init_args: {file: x, repeat: 4}}]"],
        nothing,
        ["data.train", "'repeat'", "ZsRE", "it was removed: datamodules.Sample has it; give it this source"],
    ),
    "removed key of another source": (
        ["--data.val+={class_path: datamodules.CounterFact, init_args: {file: x, limit: 4}}"],
        nothing,
        ["data.val", "'limit'", "CounterFact", "it was removed: datamodules.Sample has it; give it this source"],
    ),
    "key of a callback": (
        ["--trainer.callbacks+={class_path: callbacks.Watchdog, init_args: {patienc: 3}}"],
        nothing,
        ["callbacks.Watchdog", "'patienc'", "did you mean 'patience'"],
    ),
    "section": (["--trainr.max_steps=3"], nothing, ["--trainr.max_steps", "did you mean 'trainer.max_steps'"]),
    "editor": (["--model=editors.methods.mend.module.MNED"], nothing, ["'MNED'", "did you mean 'MEND'"]),
    "source": (["--data.val=[datamodules.ZsR]"], nothing, ["'ZsR'", "did you mean 'ZsRE'"]),
    "type": (["--trainer.max_steps=soon"], nothing, ["trainer.max_steps", "must be int", "soon"]),
    "nested type": (["--model.mend.rank=many"], nothing, ["model.mend.rank", "must be int", "many"]),
    "choice": (
        ["--model.training.lr_schedule=square"],
        nothing,
        ["model.training.lr_schedule", "'linear', 'cosine'", "square"],
    ),
    "range": (["--model.mend.rank=0"], nothing, ["rank", "must be at least 1", "0"]),
    "configuration file": (["--config=nowhere.yaml"], nothing, ["config", "nowhere.yaml"]),
    "site": (
        ["--model.base_model.sites=[model.layers.3.mlp.up_prj]"],
        nothing,
        ["'model.layers.3.mlp.up_prj'", "Candidates", "model.layers.3.mlp.up_proj", "model.layers.3.self_attn.q_proj"],
    ),
    "base model's folder": ([NO_SUCH_MODEL], nothing, ["./no/such/model", "no such folder; give a Hub id"]),
    "base model's file": (["--model.base_model.name=no/model.gguf"], nothing, ["no/model.gguf", "there is no file"]),
    "base model's package": (
        ["--model.base_model.name=package:nosuch/model.gguf"],
        nothing,
        ["'nosuch' is not installed", "pip install"],
    ),
    "base model on the Hub": (
        ["--model.base_model.name=no-such/model"],
        nothing,
        ["'no-such/model'", "cannot be loaded"],
    ),
    "data file": (["--data.path=no/where"], nothing, ["no/where/train.json cannot be read", "check the path"]),
    "rows": (
        [],
        broken_rows,
        [
            "train.json: 3 of 4 row(s) are broken",
            "row 1: alt is empty",
            "'Nowhere'",
            "row 3: loc is missing",
            "skip_invalid",
        ],
    ),
    "JSON": ([], no_json, ["train.json", "not valid JSON"]),
    "leak": ([], leaking_rows, ["train and test share 1 subject(s)", "on_leak: drop"]),
    "checkpoint": (["--ckpt_path=last"], nothing, ["--ckpt_path last: no run in", "start one without"]),
    "checkpoint file": (["--ckpt_path=no/such.ckpt"], nothing, ["--ckpt_path no/such.ckpt: there is no such file"]),
    "schedule": (
        ["--trainer.max_steps=-1", "--trainer.max_epochs=-1"],
        nothing,
        ["lr_schedule 'linear' needs trainer.max_steps"],
    ),
    "logger's package": (
        ["--trainer.logger=lightning.pytorch.loggers.WandbLogger"],
        nothing,
        ["WandbLogger: Python package 'wandb' is not installed; pip install wandb"],
    ),
    "package of a further logger": (
        ["--trainer.logger+=lightning.pytorch.loggers.MLFlowLogger"],
        nothing,
        ["MLFlowLogger: Python package 'mlflow' is not installed; pip install mlflow"],
    ),
    "precision": (
        ["--trainer.precision=bf16-true", NO_SUCH_MODEL],
        nothing,
        ["trainer.precision 'bf16-true'", "use 32-true, bf16-mixed or 16-mixed", "model.base_model.dtype"],
    ),
    "precision of float64": (["--trainer.precision=64"], nothing, ["trainer.precision 64", "use 32-true"]),
    "overfitting": (
        ["--trainer.overfit_batches=2", NO_SUCH_MODEL],
        nothing,
        ["trainer.overfit_batches 2 cannot be used (allowed: 0)", "limit", "--trainer.limit_train_batches"],
    ),
    "nothing to train": (
        [UNTRAINED, NO_SUCH_MODEL],
        nothing,
        ["fit: Untrained needs no training, so there is nothing to train: use test"],
    ),
    **{
        f"range of {argument}": ([f"--{argument}={value}", NO_SUCH_MODEL], nothing, [*parts])
        for argument, value, *parts in (
            ("trainer.max_steps", "0", "trainer.max_steps 0 is out of range (allowed: -1 for no limit, or at least 1)"),
            ("trainer.max_steps", "-5", "trainer.max_steps -5 is out of range"),
            ("trainer.max_epochs", "0", "trainer.max_epochs 0 is out of range"),
            ("trainer.limit_train_batches", "0", "trainer.limit_train_batches 0", "(allowed: above 0)"),
            ("trainer.val_check_interval", "0", "trainer.val_check_interval 0", "--trainer.limit_val_batches 0"),
            ("trainer.val_check_interval", "0.5", "val_check_interval 0.5", "--trainer.check_val_every_n_epoch 1"),
            ("trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val -1.0 is out of range (allowed: at least 0)"),
            ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches 0", "at least 1"),
            ("trainer.devices", "0", "trainer.devices 0 leaves no device"),
            ("trainer.barebones", "true", "trainer.barebones true leaves out", "--trainer.fast_dev_run true"),
            ("seed_everything", "-1", "seed_everything -1 is out of range (allowed: 0 to 4294967295)"),
            ("seed_everything", "4294967296", "seed_everything 4294967296 is out of range"),
            ("trainer.default_root_dir", "s3://bucket/x", "'s3://bucket/x' is an address", "Give a folder"),
        )
    },
    **{
        f"value of {argument}": ([f"--model.{argument}={value}"], nothing, [message])
        for argument, value, message in (
            ("training.learning_rate", "-1", "training.learning_rate must be above 0, got -1.0"),
            ("training.learning_rate", "0", "training.learning_rate must be above 0, got 0.0"),
            ("training.c_edit", "-1", "training.c_edit must be at least 0, got -1.0"),
            ("training.warmup_steps", "-1", "training.warmup_steps must be at least 0, got -1"),
            ("edit_rate_learning_rate", "-1", "edit_rate_learning_rate must be at least 0, got -1.0"),
            ("base_model.num_blocks", "0", "base_model.num_blocks must be at least 1, got 0"),
            ("base_model.num_blocks", "100", "num_blocks 100: LlamaForCausalLM has 4 blocks; give at most as many"),
        )
    },
    "rate that is no number": (["--model.training.learning_rate=nan"], nothing, ["learning_rate", "must be", "nan"]),
    "pooling": ([*SERAC_EDITOR, "--model.serac.pooling=foo"], nothing, ["pooling", "'mean'", "'first'", "foo"]),
    "file in another encoding": (["--config={data}/latin.yaml"], foreign_encodings, ["is not in UTF-8 (byte 0xfc at"]),
    "file in UTF-16": (["--config={data}/wide.yaml"], foreign_encodings, ["is not in UTF-8 (byte 0xff at place 0)"]),
    "file below another": (["--config={data}/built_on.yaml"], foreign_encodings, ["latin.yaml is not in UTF-8"]),
    "folder that is a file": (
        ["--trainer.default_root_dir={data}/train.json"],
        nothing,
        ["no run folder can be made in", "Not a directory); name another trainer.default_root_dir"],
    ),
    "folder below a file": (["--trainer.default_root_dir={data}/train.json/x"], nothing, ["no run folder can be made"]),
    "folder with a long name": (["--trainer.default_root_dir=" + "x" * 300], nothing, ["File name too long"]),
    "mode of stopping early": (early_stopping(monitor="val/loss/total", mode="foo"), nothing, ["mode", "foo"]),
    "text as base model": (["--model.base_model=3"], nothing, ["MEND", "3"]),
    "text as seed": (["--seed_everything=foo"], nothing, ["seed_everything: must be bool or int, got foo"]),
    "callback's argument": (
        [
            "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
            "init_args: {save_top_k: -5}}",
            NO_SUCH_MODEL,
        ],
        nothing,
        ["save_top_k=-5"],
    ),
    "profiler": (["--trainer.profiler=foo"], nothing, ["profiler", "'simple', 'advanced'"]),
    "number": (["--data.episodes_per_batch=0"], nothing, ["episodes_per_batch must be at least 1, got 0"]),
}
# What asks for things that do not exist, and could not succeed with other files or on another machine.
WRONG_USAGE = {
    *(mistake for mistake in MISTAKES if mistake.startswith("range of ")),
    "callback's argument",
    "file below another",
    "file in UTF-16",
    "file in another encoding",
    "mode of stopping early",
    "profiler",
    "rate that is no number",
    "text as base model",
    "text as seed",
    "abbreviated key",
    "choice",
    "configuration file",
    "editor",
    "key of a callback",
    "key of a source",
    "key of the data",
    "key of the editor",
    "key of the network",
    "key of the trainer",
    "key of the trainer in YAML",
    "nested type",
    "nothing to train",
    "overfitting",
    "pooling",
    "precision",
    "precision of float64",
    "removed key of another source",
    "removed key of a source",
    "removed key of the data",
    "section",
    "source",
    "type",
}


def failed(world: TinyWorld, tmp_path: Path, arguments: list[str], damage: Callable[[Path], None]) -> list[str]:
    """Arguments of a run over a copy of the world's data that was damaged."""
    data = tmp_path / "data"
    data.mkdir()
    for file in world.data.iterdir():
        (data / file.name).write_text(file.read_text())
    damage(data)
    return world.arguments(
        "fit", tmp_path / "runs", f"--data.path={data}", *(given.replace("{data}", str(data)) for given in arguments)
    )


@pytest.fixture
def no_logger_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the packages of the optional loggers, whatever this one has."""
    for package in ("wandb", "mlflow"):
        absent = RequirementCache(f"{package}>={NEVER}")
        monkeypatch.setattr(f"lightning.pytorch.loggers.{package}._{package.upper()}_AVAILABLE", absent)


@pytest.mark.usefixtures("no_logger_packages")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_in_a_short_message(
    mistake: str,
    tiny_world: TinyWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the thing, its value, what is allowed and what to do; no step is taken; the exit code tells it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, damage, parts = MISTAKES[mistake]
    with as_from_a_shell(), monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["train.py", *failed(tiny_world, tmp_path, arguments, damage)])
        assert command_line() == (ExitCode.USAGE if mistake in WRONG_USAGE else ExitCode.ERROR)
    said = capsys.readouterr().err
    message = said[said.index("error: ") :]
    assert all(part in message for part in parts), message
    assert len(message) < SHORT, message
    assert "Traceback" not in said
    assert "usage:" not in said
    assert list((tmp_path / "runs").glob("*")) == []


def test_a_metric_to_stop_by_that_is_missing_is_named(
    tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known only once there are metrics."""
    arguments = tiny_world.arguments("fit", tmp_path / "runs", *early_stopping(monitor="nothing"))
    with as_from_a_shell():
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        assert command_line() == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "error: Early stopping conditioned on metric `nothing` which is not available" in said
    assert "Traceback" not in said


def test_a_run_of_no_step_exports_nothing(tiny_world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(EditorError, match="no step was trained, so there is no editor to export: raise trainer"):
        tiny_world.run("fit", tmp_path / "runs", "--trainer.max_time=00:00:00:00")
    assert list(tmp_path.rglob("artifact")) == []


@pytest.mark.slow
def test_letters_that_the_locale_cannot_read_are_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    root = tmp_path / "Übung"
    arguments = tiny_world.arguments("fit", tmp_path / "runs", f"--trainer.default_root_dir={root}")
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: value for name, value in os.environ.items() if name != RUN_FOLDER_VARIABLE}
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env={**environment, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode == ExitCode.USAGE
    assert "cannot read in this locale; set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stderr


def test_a_logger_that_writes_at_once_leaves_no_folder_of_a_failed_start(tiny_world: TinyWorld, tmp_path: Path) -> None:
    board = ("--trainer.logger=lightning.pytorch.loggers.TensorBoardLogger", "--trainer.logger.save_dir=.")
    with pytest.raises(SiteError):
        tiny_world.run("fit", tmp_path / "runs", *board, "--model.base_model.sites=[nothing]")
    assert list((tmp_path / "runs").glob("*")) == []


@pytest.mark.slow
def test_mistake_in_a_process_of_its_own(tiny_world: TinyWorld, tmp_path: Path) -> None:
    done = run_process(failed(tiny_world, tmp_path, ["--model.mend.rnk=1"], nothing))
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: model (editors.methods.mend.module.MEND): ")
    assert last.endswith("did you mean 'mend.rank'?")
    assert "Traceback" not in done.stderr


def test_unknown_verb_lists_the_verbs() -> None:
    with as_from_a_shell(), pytest.raises(ConfigurationError, match=r"'fti'.*fit.*validate.*test.*export"):
        main(["fti"])


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("something new", "something new"),
        ("two\nlines", "two"),
        ('Parser key "a.b":\n  broken', "a.b: broken"),
        ("  Subtypes: [x]\n  Errors:\n    - Expected a path but x", "Subtypes: [x] Errors: - Expected a path but x"),
        ("Option 'x' is not accepted", "Option 'x' is not accepted; --help lists what is"),
    ],
)
def test_messages_of_an_unknown_form_are_kept(message: str, short: str) -> None:
    assert short_message(message) == short


# --- help and configurations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["fit", "--help"],
        ["export", "--help"],
        ["fit", "--model.help=MEND"],
        ["test", "--model.help=DirectEditor"],
    ],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with as_from_a_shell(), pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.slow
def test_editors_are_known_by_their_short_names_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "fit", "--model.help=MEND"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "--model.mend.rank" in done.stdout, done.stderr


@pytest.mark.slow
def test_training_packages_that_are_missing_are_named() -> None:
    start = "import sys; sys.modules['lightning'] = None; from train import command_line; sys.exit(command_line())"
    done = subprocess.run([sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: Python package 'lightning' is not installed; training needs: pip install 'hyperedit[train]'"
    ]


def shipped() -> list[list[Path]]:
    """Every configuration: an editor's alone, the others together with an editor's."""
    alone = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "trainer.yaml")
    parts = sorted(set(CONFIGS.rglob("*.yaml")) - set(alone))
    return [[path] for path in alone] + [[editor_for(path), path] for path in parts]


def editor_for(path: Path) -> Path:
    """The editor's configuration that the head of a recipe combines it with; MEND's for what serves any editor."""
    named = re.search(r"--config configs/(\w+\.yaml)", path.read_text())
    return CONFIGS / (named[1] if named else "mend.yaml")


def test_configurations_are_found() -> None:
    names = {path.relative_to(CONFIGS).as_posix() for paths in shipped() for path in paths}
    assert {"mend.yaml", "demo.yaml", "trainer.yaml", "lm/smollm2-135m.yaml", "data/zsre.yaml"} <= names
    assert names == {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}


@pytest.fixture
def print_config(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `--print_config` says of `fit` with some files and options; what they leave open is given."""

    def printed(*files: Path, options: Sequence[str] = ()) -> dict[str, Any]:
        given = ["--model.base_model.name=somewhere", "--data=datamodules.EditDataModule"]
        given += [f"--data.{split}=[]" for split in ("train", "val", "test")]
        first, *others = (f"--config={file}" for file in files)
        complete = others == [] and "data:" in files[0].read_text()
        with as_from_a_shell(), pytest.raises(SystemExit) as done:
            main(["fit", first, *([] if complete else given), *others, *options, "--print_config"])
        assert done.value.code == 0
        content = yaml.safe_load(capsys.readouterr().out)
        assert isinstance(content, dict)
        return content

    return printed


@pytest.mark.parametrize("paths", shipped(), ids=lambda paths: "+".join(path.stem for path in paths))
def test_shipped_configuration_parses(paths: list[Path], print_config: Callable[..., dict[str, Any]]) -> None:
    printed = print_config(*paths)
    assert contained(reduce(merged, map(read, paths)), printed, paths[-1].name)
    checkpoints = [item["init_args"] for item in printed["trainer"]["callbacks"] if "Checkpoint" in item["class_path"]]
    newest = {"filename": "last", "enable_version_counter": False, "monitor": None}
    assert any(newest.items() <= arguments.items() for arguments in checkpoints), "kept whatever validation says"


def read(path: Path) -> Any:
    """A configuration with those that it builds on."""
    content = yaml.safe_load(path.read_text())
    return reduce(merged, [*(read(path.parent / name) for name in content.pop("config", [])), content])


def merged(first: Any, second: Any) -> Any:
    """Two configurations, the second laid over the first; `key+` adds to a list."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return second
    more = {key[:-1]: first[key[:-1]] + value for key, value in second.items() if key.endswith("+")}
    return first | {key: merged(first.get(key), value) for key, value in second.items() if key[-1] != "+"} | more


def contained(part: Any, whole: Any, place: str) -> bool:
    """Whether every setting of `part` is in `whole` (interpolated ones excepted); asserts on the first that is not."""
    if isinstance(part, dict):
        return all(contained(value, whole[key], f"{place}.{key}") for key, value in part.items())
    if isinstance(part, list):
        assert len(part) <= len(whole), place
        return all(contained(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(part, whole, strict=False)))
    assert part == whole or "${" in str(part), f"{place}: {part!r}, printed {whole!r}"
    return True


# --- class paths of earlier versions ---------------------------------------------------------------------------------


def test_an_editors_old_name_in_an_argument(
    print_config: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    printed = print_config(CONFIGS / "mend.yaml", options=["--model", "editors.ke.module.KE"])
    assert printed["model"]["class_path"] == "editors.methods.ke.module.KE"
    assert "editors.ke.module.KE is now editors.methods.ke.module.KE" in caplog.text


def test_old_names_in_a_saved_configuration(
    tmp_path: Path, print_config: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    saved = tmp_path / "config.yaml"
    new = print_config(CONFIGS / "mend.yaml", CONFIGS / "strategy" / "zero3_cpu.yaml")
    text = yaml.safe_dump(new).replace("editors.methods.", "editors.").replace("training.zero", "strategies")
    assert {"editors.mend.module.MEND", "editors.strategies.ZeRO"} <= set(text.split())
    saved.write_text(text)
    assert print_config(saved) == new
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "editors.mend.module.MEND is now editors.methods.mend.module.MEND",
        "editors.strategies.ZeRO is now editors.training.zero.ZeRO",
    ]


# --- editors that need no training -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_needs_no_training_is_tested_and_exported_without_a_checkpoint(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    tested = tiny_world.run("test", tmp_path / "runs", UNTRAINED)
    metrics = json.loads((Path(tested.trainer.default_root_dir) / "results" / "metrics.json").read_text())
    assert metrics["checkpoint"] is None
    assert any(name.startswith("test/") for name in tested.trainer.callback_metrics)
    tiny_world.run("validate", tmp_path / "runs", UNTRAINED)
    tiny_world.run("export", tmp_path / "runs", UNTRAINED, f"--output={tmp_path / 'artifact'}")
    assert load_editor(tmp_path / "artifact").config.editor == "mend"


# --- wiring ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_run(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one batch without files."""
    root = tmp_path_factory.mktemp("wiring") / "runs"
    return run(tiny_world.arguments("fit", root, "--trainer.fast_dev_run=true"))


def test_checkpoints_are_written_whole(short_run: Any) -> None:
    assert type(short_run.trainer.strategy.checkpoint_io) is AtomicCheckpointIO


@pytest.mark.slow
def test_callbacks_that_a_setting_switches_off_are_left_out(tiny_world: TinyWorld, tmp_path: Path) -> None:
    monitor, bar = (f"lightning.pytorch.callbacks.{name}" for name in ("LearningRateMonitor", "RichProgressBar"))
    off = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar", "enable_checkpointing")]
    short = ("--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    cli = tiny_world.run(
        "fit", tmp_path / "runs", f"--trainer.callbacks+={monitor}", f"--trainer.callbacks+={bar}", *off, *short
    )
    assert cli.trainer.global_step == 1
    trainer: Any = cli.trainer  # Lightning adds `callbacks` without declaring it
    kinds = (LearningRateMonitor, ModelCheckpoint, RichProgressBar)
    assert [callback for callback in trainer.callbacks if isinstance(callback, kinds)] == []
    assert any(isinstance(callback, Watchdog) for callback in trainer.callbacks)


def test_the_next_run_of_the_process_gets_a_folder_of_its_own(short_run: Any) -> None:
    assert RUN_FOLDER_VARIABLE not in os.environ
