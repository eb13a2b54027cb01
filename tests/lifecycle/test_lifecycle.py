"""The whole life of an editor, for every registered one: fit, resume, validate, test, export, load, apply."""

from __future__ import annotations

import csv
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.easyedit.mend import save_easyedit
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.artifacts.lora import save_lora
from editors.artifacts.merged import save_merged, undo_merged
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer, weights_hash
from editors.cli.line import main
from editors.common.errors import BaseModelError, EditorError, UsageError
from editors.edits.low_rank import Edit, low_rank
from editors.methods.registry import EDITORS
from editors.texts.batches import TokenBatch, collate_texts, encode_answers
from editors.texts.requests import EditRequest
from editors.training.module import Editor
from tests.tiny_world import COUNTS, TinyWorld, row, run, write_model, write_splits, write_tokenizer
from train import EditorCLI

pytestmark = pytest.mark.slow

STEPS_BEFORE_RESUMING, STEPS = 8, 12


@dataclass(frozen=True)
class Life:
    """The finished runs of one editor."""

    root: Path
    fit: EditorCLI
    resumed: EditorCLI
    validated: EditorCLI
    tested: EditorCLI
    artifact: Path

    def folders(self) -> list[Path]:
        return [Path(cli.trainer.default_root_dir) for cli in (self.fit, self.resumed, self.validated, self.tested)]

    @property
    def editor(self) -> Editor:
        return self.tested.model

    @property
    def name(self) -> str:
        return self.editor.registered_name


@pytest.fixture(scope="module", params=sorted(EDITORS))
def life(request: pytest.FixtureRequest, tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """One life of each editor; nothing is changed by the tests."""
    root = tmp_path_factory.mktemp(request.param) / "runs"

    def run(verb: str, *more: str) -> EditorCLI:
        return tiny_world.run(verb, root, *more, editor=request.param)

    fit = run("fit", f"--trainer.max_steps={STEPS_BEFORE_RESUMING}", "--trainer.val_check_interval=4")
    resumed = run("fit", "--ckpt_path=last", "--trainer.val_check_interval=4")
    last = f"--ckpt_path={Path(resumed.trainer.default_root_dir) / 'checkpoints' / 'last.ckpt'}"
    artifact = root.parent / "exported"
    run("export", last, f"--output={artifact}")
    return Life(root, fit, resumed, run("validate", "--ckpt_path=last"), run("test", last), artifact)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_run_has_a_folder_of_its_own(life: Life) -> None:
    folders = life.folders()
    assert len(set(folders)) == len(folders)
    assert all(folder.parent == life.root for folder in folders)


@pytest.mark.parametrize(
    "name",
    [
        "artifact/README.md",
        "artifact/config.json",
        "artifact/model.safetensors",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "config.yaml",
        "metrics.csv",
        "plots/training.png",
        "results/examples.json",
        "results/metrics.json",
    ],
)
def test_training_leaves_its_files(life: Life, name: str) -> None:
    for folder in life.folders()[:2]:
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["plots/test.png", "results/examples.json", "results/metrics.json"])
def test_testing_leaves_its_files(life: Life, name: str) -> None:
    assert (life.folders()[3] / name).stat().st_size > 0


def test_nothing_half_written_is_left(life: Life) -> None:
    assert list(life.root.parent.rglob(".*")) == []
    assert list(life.root.parent.rglob("*.tmp")) == []


def test_metrics_of_every_step_are_logged(life: Life) -> None:
    first, resumed = (logged_steps(folder) for folder in life.folders()[:2])
    assert first == list(range(STEPS_BEFORE_RESUMING))
    assert resumed == list(range(STEPS_BEFORE_RESUMING, STEPS))


def logged_steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(line["step"]) for line in csv.DictReader(file) if line["train/total_loss"]]


def test_saved_configuration_is_what_ran(life: Life) -> None:
    config = yaml.safe_load((life.folders()[0] / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == STEPS_BEFORE_RESUMING
    assert config["model"]["class_path"] == f"{type(life.editor).__module__}.{type(life.editor).__qualname__}"
    assert config["model"]["init_args"]["base_model"]["name"] == life.editor.base_model.name
    assert "base_model" not in config["data"]["init_args"]  # linked: it is the editor's


@pytest.mark.parametrize(("folder", "split"), [(0, "val"), (1, "val"), (2, "val"), (3, "test")])
def test_results_carry_the_facts_that_make_them_checkable(life: Life, folder: int, split: str) -> None:
    results = read_json(life.folders()[folder] / "results" / "metrics.json")
    assert results["split"] == split
    assert results["base_model"] == life.editor.base_model.name
    assert results["base_weights"] == weights_hash(life.editor.frozen.model, torch.bfloat16)
    assert {split: len(digest) for split, digest in results["data"].items()} == dict.fromkeys(COUNTS, 64)
    assert results["seed"] == "0"
    assert results["step"] == (STEPS_BEFORE_RESUMING if folder == 0 else STEPS)
    restored = {1: 0, 2: 1, 3: 1}
    expected = str(life.folders()[restored[folder]] / "checkpoints" / "last.ckpt") if folder else None
    assert results["checkpoint"] == expected
    assert results["versions"]["torch"] == torch.__version__
    for promise in ("reliability", "generality", "locality"):
        assert 0 <= results["metrics"][f"{promise}/teacher_forced/token_accuracy"] <= 1


@pytest.mark.parametrize("verb", ["validate", "test", "export"])
def test_an_untrained_editor_is_neither_scored_nor_exported(tiny_world: TinyWorld, tmp_path: Path, verb: str) -> None:
    output = ["--output=exported"] if verb == "export" else []
    with pytest.raises(EditorError, match=rf"{verb} needs a trained editor: give --ckpt_path"):
        tiny_world.run(verb, tmp_path / "runs", *output)
    assert not (tmp_path / "runs").exists()


def test_export_looks_at_its_folder_before_it_validates(life: Life, tiny_world: TinyWorld, tmp_path: Path) -> None:
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    with pytest.raises(EditorError, match="exists already"):
        tiny_world.run(
            "export", tmp_path / "runs", f"--ckpt_path={last}", f"--output={life.artifact}", editor=life.name
        )
    assert not list((tmp_path / "runs").rglob("metrics.json"))


def test_validation_of_a_checkpoint_repeats_the_numbers_of_training(life: Life) -> None:
    trained, validated = (read_json(life.folders()[i] / "results/metrics.json")["metrics"] for i in (1, 2))
    assert validated == pytest.approx(trained, abs=1e-6)


def test_generated_answers_are_scored_in_test(life: Life) -> None:
    names = read_json(life.folders()[3] / "results/metrics.json")["metrics"]
    assert {"reliability/generated/exact_match", "before/reliability/generated/exact_match"} <= names.keys()


def test_base_model_is_untouched(life: Life) -> None:
    fresh = weights_hash(load_base_model(life.editor.base_model))
    assert all(weights_hash(cli.model.frozen.model) == fresh for cli in (life.fit, life.resumed, life.tested))


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


def test_training_moved_every_parameter(life: Life) -> None:
    before, after = life.fit.model.network.state_dict(), life.resumed.model.network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name, _ in life.fit.model.network.named_parameters())


def test_checkpoint_holds_the_hypernetwork_and_nothing_frozen(life: Life) -> None:
    path = life.folders()[1] / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert {f"network.{name}" for name in life.editor.network.state_dict()} <= checkpoint["state_dict"].keys()
    assert not any(name.startswith("frozen.") for name in checkpoint["state_dict"])
    trained = total_bytes(checkpoint["state_dict"]) + total_bytes(checkpoint["optimizer_states"])
    frozen = total_bytes(life.editor.frozen.state_dict())
    assert path.stat().st_size < trained + frozen / 2


def test_checkpoint_gives_the_editor_with_the_arguments_of_its_training(life: Life, tiny_world: TinyWorld) -> None:
    kind = type(life.fit.model)
    path = life.folders()[1] / "checkpoints" / "last.ckpt"
    loaded = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    arguments = inspect.signature(kind.__init__).parameters.keys() - {"self"}
    assert arguments <= loaded.hparams.keys()
    wanted = tiny_world.config(life.root, kind.registered_name)["model"]["init_args"]
    for name, value in wanted.items():
        found = loaded.hparams[name]
        assert (value.items() <= found.items()) if isinstance(value, dict) else (found == value), name
    assert loaded.base_model == life.fit.model.base_model
    assert (loaded.learning_rate, loaded.lr_schedule, loaded.warmup_steps) == (1e-3, "linear", 2)
    trained = life.resumed.model.network.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in loaded.network.state_dict().items())


def total_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(total_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(total_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


# --- the exported editor ---------------------------------------------------------------------------------------------


def edits_of(life: Life, loaded: LoadedEditor) -> tuple[TokenBatch, Edit, Edit]:
    """A held-out text, its edit by the trained module, and by the exported editor on a model of its own."""
    fact = row(sum(COUNTS.values()))
    tokenizer = load_tokenizer(loaded.base_model)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    tokens = collate_texts(encode_answers(tokenizer, [(fact["src"], fact["alt"])]), [0], pad)
    life.editor.eval()
    with torch.no_grad():
        trained, _ = life.editor.compute_edit(tokens, 1, life.editor.frozen.prefix([tokens])[0])
    model = load_base_model(loaded.base_model)
    return tokens, trained, loaded.edit(model, tokenizer, [EditRequest(fact["src"], fact["alt"])])


@pytest.mark.parametrize("place", ["end of training", "export"])
def test_exported_editor_gives_the_same_logits(life: Life, place: str) -> None:
    folder = life.artifact if place == "export" else life.folders()[1] / "artifact"
    tokens, trained, exported = edits_of(life, load_editor(folder))
    frozen = life.editor.frozen
    with torch.no_grad():
        before, wanted, found = (frozen.logits(tokens, edit) for edit in (None, trained, exported))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 0.01


def test_exported_card_has_the_metrics(life: Life) -> None:
    metrics = read_json(life.artifact / "config.json")["results"]["metrics"]
    validated = read_json(life.folders()[2] / "results/metrics.json")["metrics"]
    assert metrics == pytest.approx(validated, abs=1e-6)
    assert f"| loss/total | {metrics['loss/total']:.4f} |" in (life.artifact / "README.md").read_text()


def test_artifact_of_training_has_the_metrics_of_its_last_step(life: Life) -> None:
    results = read_json(life.folders()[1] / "artifact/config.json")["results"]
    assert results["metrics"] == read_json(life.folders()[1] / "results/metrics.json")["metrics"]
    assert results["step"] == STEPS


# --- other forms -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(model: Any, tokens: TokenBatch) -> torch.Tensor:
    """At the answer positions."""
    found: torch.Tensor = model(input_ids=tokens.input_ids).logits.flatten(0, 1)[tokens.positions]
    return found


def test_edit_as_adapter_and_as_model_gives_the_same_logits_and_is_undone(life: Life, tmp_path: Path) -> None:
    loaded = load_editor(life.artifact)
    tokens, _, edit = edits_of(life, loaded)
    if not EDITORS[life.name].low_rank:
        with pytest.raises(EditorError, match="is no weight update"):
            low_rank(edit)
        return
    model = load_base_model(loaded.base_model)
    before, fresh = logits_of(model, tokens), weights_hash(model)
    with edit.applied(model):
        wanted = logits_of(model, tokens)
    assert (wanted - before).abs().max() > 0.01
    merged = save_merged(tmp_path / "merged", low_rank(edit))
    found = logits_of(AutoModelForCausalLM.from_pretrained(merged), tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    undone = undo_merged(merged, tmp_path / "undone")
    assert weights_hash(AutoModelForCausalLM.from_pretrained(undone)) == fresh
    adapted = PeftModel.from_pretrained(model, save_lora(tmp_path / "lora", low_rank(edit), model))
    torch.testing.assert_close(logits_of(adapted, tokens), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits_of(adapted.unload(), tokens), before)


def export_as(life: Life, world: TinyWorld, folder: Path, *more: str) -> Path:
    """Export the last checkpoint of `life` in another form."""
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    output = folder / "exported"
    world.run("export", folder / "runs", f"--ckpt_path={last}", f"--output={output}", *more, editor=life.name)
    return output


def test_export_for_easyedit(life: Life, tiny_world: TinyWorld, tmp_path: Path) -> None:
    more = ("--format=easyedit", "--model_name=my/llama")
    if life.name != "mend":
        message = {"ke": "EasyEdit has had no KE since August 2023", "serac": "the mean over all tokens"}[life.name]
        with pytest.raises(EditorError, match=message):
            export_as(life, tiny_world, tmp_path, *more)
        assert not list((tmp_path / "runs").rglob("metrics.json"))
        return
    archive = export_as(life, tiny_world, tmp_path, *more) / "archive.pt"
    save_easyedit(tmp_path / "again", load_editor(life.artifact), "my/llama")
    torch.testing.assert_close(read_archive(archive)[1], read_archive(tmp_path / "again" / "archive.pt")[1])


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_form_of_an_edit_is_refused_with_the_command_that_writes_it(
    life: Life, tiny_world: TinyWorld, tmp_path: Path, form: str
) -> None:
    with pytest.raises(UsageError, match=f"python -m editors convert EDIT.safetensors --to {form} --output FOLDER"):
        export_as(life, tiny_world, tmp_path, f"--format={form}")
    assert not list((tmp_path / "runs").rglob("metrics.json"))


def test_name_for_easyedit_is_refused_where_it_would_be_ignored(
    life: Life, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--model_name is for --format easyedit"):
        export_as(life, tiny_world, tmp_path, "--model_name=my/llama")


def test_edit_of_ke_for_easyedit_is_a_model(
    life: Life, tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = EditRequest(row(0)["src"], row(0)["alt"])
    arguments = ["export", str(life.artifact), f"--prompt={request.prompt}", f"--output={tmp_path / 'out'}"]
    assert main(arguments) == 2
    assert "needs both --prompt and --target" in capsys.readouterr().err
    arguments.append(f"--target={request.target}")
    if life.name != "ke":
        assert main(arguments) == 2
        assert "--prompt and --target are for KE" in capsys.readouterr().err
        return
    assert main(arguments) == 0
    assert "EasyEdit has had no KE since August 2023" in " ".join(capsys.readouterr().out.split())
    model, loaded = load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32")), load_editor(life.artifact)
    low_rank(loaded.edit(model, load_tokenizer(loaded.base_model), [request])).merge(model)
    assert weights_hash(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) == weights_hash(model)


# --- which run is continued ------------------------------------------------------------------------------------------


def test_resuming_continues_the_newest_run(life: Life) -> None:
    assert life.resumed.trainer.global_step == STEPS
    config = yaml.safe_load((life.folders()[1] / "config.yaml").read_text())
    assert config["ckpt_path"] == str(life.folders()[0] / "checkpoints" / "last.ckpt")


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


def test_checkpoint_of_another_editor_is_refused(life: Life, tiny_world: TinyWorld, tmp_path: Path) -> None:
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    sites = "--model.base_model.sites=[model.layers.3.mlp.up_proj]"
    with pytest.raises(EditorError, match=r"checkpoint does not fit this editor: .* Use the configuration"):
        tiny_world.run("validate", tmp_path / "runs", f"--ckpt_path={last}", sites, editor=life.name)


def test_checkpoint_for_another_base_model_is_refused(life: Life, tiny_world: TinyWorld, tmp_path: Path) -> None:
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    other = write_model(tmp_path / "other", seed=1)
    write_tokenizer(other)
    with pytest.raises(BaseModelError, match=r"trained for a base model with other weights than .*other"):
        tiny_world.run(
            "validate", tmp_path / "runs", f"--ckpt_path={last}", f"--model.base_model.name={other}", editor=life.name
        )


def test_checkpoint_serves_the_base_model_in_another_precision(
    life: Life, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    half = tiny_world.run(
        "validate", tmp_path / "runs", f"--ckpt_path={last}", "--model.base_model.dtype=bfloat16", editor=life.name
    )
    assert half.model.frozen.model.dtype == torch.bfloat16
    assert half.model.restored_step == STEPS


def test_checkpoint_refuses_the_base_model_in_float16_and_says_so(
    life: Life, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    last = life.folders()[1] / "checkpoints" / "last.ckpt"
    with pytest.raises(BaseModelError, match=r"Trained with dtype float32, the model given is in float16"):
        tiny_world.run(
            "validate", tmp_path / "runs", f"--ckpt_path={last}", "--model.base_model.dtype=float16", editor=life.name
        )


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


def test_saved_configuration_runs_again_in_a_folder_of_its_own(life: Life) -> None:
    first = life.folders()[0]
    files = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    again = run(["fit", f"--config={first / 'config.yaml'}"])
    folder = Path(again.trainer.default_root_dir)
    assert folder.parent == life.root
    assert folder not in life.folders()
    assert (folder / "metrics.csv").read_text() == (first / "metrics.csv").read_text()
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == files


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


def test_base_model_may_be_named_in_the_configuration_only_once(life: Life) -> None:
    assert life.fit.datamodule.base_model == BaseModelConfig(**life.fit.model.base_model_dict())
