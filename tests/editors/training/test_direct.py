"""Tests of `DirectEditor`, with the direct method of `docs/adding_a_method.md`; its life is in `tests/lifecycle`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from datamodules import EditDataModule, ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError, UsageError
from editors.lm.frozen import FrozenLM
from editors.making.registry import registered_method
from editors.training import module
from editors.training.direct import DirectEditor
from tests.documentation import importable, write_new_methods
from tests.tiny_world import TinyWorld


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with importable(write_new_methods(tmp_path_factory.mktemp("installed"))):
        yield


@pytest.fixture
def base_model(tiny_world: TinyWorld) -> BaseModelConfig:
    return BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)


@pytest.fixture
def data(tiny_world: TinyWorld, base_model: BaseModelConfig) -> EditDataModule:
    splits: Any = {split: [ZsRE(f"{split}.json")] for split in ("train", "val", "test")}
    return EditDataModule(base_model, **splits, path=str(tiny_world.data), eval_batch_size=8)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setenv("HYPEREDIT_CACHE", str(tmp_path / "cache"))
    return Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_steps=1,
    )  # fmt: skip


def test_it_is_scored_as_it_is(base_model: BaseModelConfig, data: EditDataModule, trainer: Trainer) -> None:
    editor = DirectEditor(base_model, "my_step", {"step": 0.5})
    (scores,) = trainer.test(editor, data, verbose=False)
    assert scores["test/reliability/generated/exact_match"] >= scores["test/before/reliability/generated/exact_match"]
    reliability = "reliability/teacher_forced/token_accuracy"
    assert scores[f"test/{reliability}"] > scores[f"test/before/{reliability}"]
    assert "test/loss/total" not in scores  # by which trained editors are chosen
    assert not list(Path(trainer.default_root_dir).rglob("*.ckpt"))


def test_it_is_prepared_with_texts_of_the_training_split_alone(
    base_model: BaseModelConfig, data: EditDataModule, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    editor = DirectEditor(base_model, "my_step")
    network = editor._network_class

    def prepared(method: Any, lm: FrozenLM, texts: Sequence[str]) -> None:
        seen.extend(texts)

    monkeypatch.setattr(network, "prepare", prepared)
    trainer.validate(editor, data, verbose=False)
    own = {text for record in data.records["train"] for text in (record.prompt, record.locality[0].prompt)}
    assert set(seen) == own


def test_fit_is_refused_before_a_model_is_loaded(
    base_model: BaseModelConfig, data: EditDataModule, trainer: Trainer
) -> None:
    editor = DirectEditor(base_model, "my_step")
    with pytest.raises(UsageError, match="method 'my_step' learns nothing: use test, validate or export"):
        trainer.fit(editor, data)
    assert not hasattr(editor, "lm")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("my_stp", {}, r"no editor 'my_stp'; registered are: .*my_step"),
        ("my_step", {"stp": 1.0}, r"model.settings of method 'my_step': .*'stp'"),
        ("my_rates", {}, r"'my_rates' has to be trained: use class_path my_rates.module.MyRatesEditor"),
        ("mend", {}, r"'mend' has to be trained: use class_path editors.methods.mend.module.MEND"),
    ],
)
def test_what_cannot_be_used_so_is_refused(
    base_model: BaseModelConfig, method: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(EditorError, match=message):
        DirectEditor(base_model, method, settings)


def test_its_arguments_are_plain_values(base_model: BaseModelConfig) -> None:
    editor = DirectEditor(base_model, "my_step", {"step": 2.0})
    assert (editor.hparams["method"], editor.hparams["settings"]) == ("my_step", {"step": 2.0})
    assert editor.hparams["base_model"]["name"] == base_model.name
    editor.configure_model()
    assert torch.equal(editor.network.get_buffer("power"), torch.ones(len(editor.lm.sites)))


def test_records_without_a_subject_are_refused_before_a_model_is_loaded(
    base_model: BaseModelConfig, data: EditDataModule, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"my_step": replace(registered_method("my_step"), needs_subject=True)}
    monkeypatch.setattr(module, "registered_methods", lambda: needs)
    editor = DirectEditor(base_model, "my_step")
    trainer.validate(editor, data, verbose=False)
    data.records["test"][0] = replace(data.records["test"][0], subject="")
    again = DirectEditor(base_model, "my_step")
    with pytest.raises(EditorError, match=r"edits at the subject's tokens, and request 'W.*' names no subject"):
        trainer.validate(again, data, verbose=False)
    assert not hasattr(again, "lm")
