"""`LearnedMethodTester`: what a method that is trained does besides: fit, resume, checkpoints."""

from __future__ import annotations

import csv
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from editors.artifacts.editor import load_editor
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import BaseModelError, EditorError
from editors.making.registry import Method
from editors.training.module import FROZEN_PREFIX
from tests.method_tester import Life, MethodTester, assert_same_edits, folder_of, read_json, results_of
from tests.tiny_world import TinyWorld, run, write_model, write_tokenizer
from train import EditorCLI

STEPS_BEFORE_RESUMING, STEPS = 8, 12


@dataclass(frozen=True, kw_only=True)
class LearnedLife(Life):
    """The finished runs of one editor, those of its training included."""

    fit: EditorCLI
    resumed: EditorCLI

    def clis(self) -> list[EditorCLI]:
        return [self.fit, self.resumed, self.validated, self.tested]

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return folder_of(self.resumed) / "checkpoints" / "last.ckpt"


def logged_steps(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(line["step"]) for line in csv.DictReader(file) if line["train/total_loss"]]


def total_bytes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(total_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(total_bytes, value))
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0


class LearnedMethodTester(MethodTester):
    """A method that is trained: `MethodTester`, and its training."""

    @pytest.fixture(scope="class")
    @classmethod
    def life(cls, world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> LearnedLife:
        """One life of the editor; nothing is changed by the tests."""
        root = tmp_path_factory.mktemp(cls.name) / "runs"

        def run(verb: str, *more: str) -> EditorCLI:
            return world.run(verb, root, *more, editor=cls.name)

        fit = run("fit", f"--trainer.max_steps={STEPS_BEFORE_RESUMING}", "--trainer.val_check_interval=4")
        resumed = run("fit", "--ckpt_path=last", "--trainer.val_check_interval=4")
        last = f"--ckpt_path={folder_of(resumed) / 'checkpoints' / 'last.ckpt'}"
        artifact = root.parent / "exported"
        run("export", last, f"--output={artifact}")
        validated, tested = run("validate", "--ckpt_path=last"), run("test", last)
        return LearnedLife(root, validated, tested, artifact, [last], fit=fit, resumed=resumed)

    def test_it_is_trained(self, method: Method) -> None:
        assert method.needs_training

    # --- runs --------------------------------------------------------------------------------------------------------

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
    def test_training_leaves_its_files(self, life: LearnedLife, name: str) -> None:
        for cli in (life.fit, life.resumed):
            assert (folder_of(cli) / name).stat().st_size > 0

    def test_metrics_of_every_step_are_logged(self, life: LearnedLife) -> None:
        first, resumed = (logged_steps(folder_of(cli)) for cli in (life.fit, life.resumed))
        assert first == list(range(STEPS_BEFORE_RESUMING))
        assert resumed == list(range(STEPS_BEFORE_RESUMING, STEPS))

    def test_saved_configuration_is_what_ran(self, life: LearnedLife) -> None:
        config = yaml.safe_load((folder_of(life.fit) / "config.yaml").read_text())
        assert config["trainer"]["max_steps"] == STEPS_BEFORE_RESUMING
        assert config["model"]["class_path"] == f"{type(life.editor).__module__}.{type(life.editor).__qualname__}"
        assert config["model"]["init_args"]["base_model"]["name"] == life.editor.base_model.name
        assert "base_model" not in config["data"]["init_args"]  # linked: it is the editor's

    def test_base_model_may_be_named_in_the_configuration_only_once(self, life: LearnedLife) -> None:
        assert life.fit.datamodule.base_model == BaseModelConfig(**life.fit.model.plain_base_model())

    def test_results_say_which_training_they_are_of(self, life: LearnedLife) -> None:
        first, last = (str(folder_of(cli) / "checkpoints" / "last.ckpt") for cli in (life.fit, life.resumed))
        found = [(results["step"], results["checkpoint"]) for results in map(results_of, life.clis())]
        assert found == [(STEPS_BEFORE_RESUMING, None), (STEPS, first), (STEPS, last), (STEPS, last)]

    @pytest.mark.parametrize("verb", ["validate", "test", "export"])
    def test_an_untrained_editor_is_neither_scored_nor_exported(
        self, world: TinyWorld, tmp_path: Path, verb: str
    ) -> None:
        output = ["--output=exported"] if verb == "export" else []
        with pytest.raises(EditorError, match=rf"{verb} needs a trained editor: give --ckpt_path"):
            world.run(verb, tmp_path / "runs", *output, editor=self.name)
        assert not (tmp_path / "runs").exists()

    def test_validation_of_a_checkpoint_repeats_the_numbers_of_training(self, life: LearnedLife) -> None:
        trained, validated = (results_of(cli)["metrics"] for cli in (life.resumed, life.validated))
        assert validated == pytest.approx(trained, abs=1e-6)
        assert "loss/total" in validated  # by which checkpoints are chosen

    def test_training_moved_every_parameter(self, life: LearnedLife) -> None:
        before, after = life.fit.model.network.state_dict(), life.resumed.model.network.state_dict()
        assert all(not torch.equal(before[name], after[name]) for name, _ in life.fit.model.network.named_parameters())

    def test_resuming_continues_the_newest_run(self, life: LearnedLife) -> None:
        assert life.resumed.trainer.global_step == STEPS
        config = yaml.safe_load((folder_of(life.resumed) / "config.yaml").read_text())
        assert config["ckpt_path"] == str(folder_of(life.fit) / "checkpoints" / "last.ckpt")

    def test_saved_configuration_runs_again_in_a_folder_of_its_own(self, life: LearnedLife) -> None:
        first = folder_of(life.fit)
        files = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
        again = run(["fit", f"--config={first / 'config.yaml'}"])
        folder = folder_of(again)
        assert folder.parent == life.root
        assert folder not in life.folders()
        assert (folder / "metrics.csv").read_text() == (first / "metrics.csv").read_text()
        assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == files

    # --- artifact of the training ------------------------------------------------------------------------------------

    def test_editor_exported_at_the_end_of_training_gives_the_same_logits(self, life: LearnedLife) -> None:
        assert_same_edits(life.editor, load_editor(folder_of(life.resumed) / "artifact"))

    def test_artifact_of_training_has_the_metrics_of_its_last_step(self, life: LearnedLife) -> None:
        results = read_json(folder_of(life.resumed) / "artifact/config.json")["results"]
        assert results["metrics"] == results_of(life.resumed)["metrics"]
        assert results["step"] == STEPS

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def test_checkpoint_holds_the_hypernetwork_and_nothing_frozen(self, life: LearnedLife) -> None:
        checkpoint = torch.load(life.last, weights_only=True)
        assert {f"network.{name}" for name in life.editor.network.state_dict()} <= checkpoint["state_dict"].keys()
        assert not any(name.startswith(FROZEN_PREFIX) for name in checkpoint["state_dict"])
        trained = total_bytes(checkpoint["state_dict"]) + total_bytes(checkpoint["optimizer_states"])
        lm = total_bytes(life.editor.lm.state_dict())
        assert life.last.stat().st_size < trained + lm / 2

    def test_checkpoint_gives_the_editor_with_the_arguments_of_its_training(
        self, life: LearnedLife, world: TinyWorld
    ) -> None:
        kind = type(life.fit.model)
        loaded = kind.load_from_checkpoint(life.last, map_location="cpu", weights_only=True)
        arguments = inspect.signature(kind.__init__).parameters.keys() - {"self"}
        assert arguments <= loaded.hparams.keys()
        wanted = world.config(life.root, self.name)["model"]["init_args"]
        for name, value in wanted.items():
            found = loaded.hparams[name]
            assert (value.items() <= found.items()) if isinstance(value, dict) else (found == value), name
        assert loaded.base_model == life.fit.model.base_model
        assert loaded.settings == life.fit.model.settings
        trained = life.resumed.model.network.state_dict()
        assert all(torch.equal(trained[name], tensor) for name, tensor in loaded.network.state_dict().items())

    def validated_with(self, life: LearnedLife, world: TinyWorld, folder: Path, option: str) -> EditorCLI:
        return world.run("validate", folder / "runs", *life.options, option, editor=self.name)

    def test_checkpoint_of_another_editor_is_refused(self, life: LearnedLife, world: TinyWorld, tmp_path: Path) -> None:
        sites = "--model.base_model.sites=[model.layers.3.mlp.up_proj]"
        with pytest.raises(EditorError, match=r"checkpoint does not fit this editor: .* Use the configuration"):
            self.validated_with(life, world, tmp_path, sites)

    def test_checkpoint_for_another_base_model_is_refused(
        self, life: LearnedLife, world: TinyWorld, tmp_path: Path
    ) -> None:
        other = write_model(tmp_path / "other", seed=1)
        write_tokenizer(other)
        with pytest.raises(BaseModelError, match=r"trained for a base model with other weights than .*other"):
            self.validated_with(life, world, tmp_path, f"--model.base_model.name={other}")

    def test_checkpoint_serves_the_base_model_in_another_precision(
        self, life: LearnedLife, world: TinyWorld, tmp_path: Path
    ) -> None:
        half = self.validated_with(life, world, tmp_path, "--model.base_model.dtype=bfloat16")
        assert half.model.lm.model.dtype == torch.bfloat16
        assert half.model.restored_step == STEPS

    def test_checkpoint_refuses_the_base_model_in_float16_and_says_so(
        self, life: LearnedLife, world: TinyWorld, tmp_path: Path
    ) -> None:
        with pytest.raises(BaseModelError, match=r"Trained with dtype float32, the model given is in float16"):
            self.validated_with(life, world, tmp_path, "--model.base_model.dtype=float16")
