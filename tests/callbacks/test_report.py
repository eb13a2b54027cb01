"""Tests of `callbacks.report`: a test run leaves a report card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.report import WriteReport
from datamodules.base import EditDataModule
from datamodules.sources import ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.scoring.report.card import ReportCard
from editors.scoring.report.cases import SAME_QUESTION
from editors.scoring.report.rows import EDIT
from tests.tiny_world import TinyWorld


@pytest.fixture
def editor(tiny_world: TinyWorld) -> MEND:
    editor = MEND(BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2), MENDConfig(rank=4))
    editor.configure_model()
    return editor


def trainer(folder: Path, data: Any, **attributes: Any) -> Any:
    """What the callback reads of a trainer."""
    return SimpleNamespace(
        **{"datamodule": data, "default_root_dir": str(folder), "is_global_zero": True, **attributes}
    )


@pytest.fixture
def data(tiny_world: TinyWorld, editor: MEND) -> EditDataModule:
    module = EditDataModule(editor.base_model, [], [], [ZsRE("test.json")], path=str(tiny_world.data))
    module.setup("test")
    return module


def test_the_card_is_of_test_records(tmp_path: Path, editor: MEND, data: EditDataModule) -> None:
    editor.train()
    WriteReport(count=3, together=(1, 2)).on_test_end(trainer(tmp_path, data), editor)
    assert editor.training
    card = ReportCard.load(tmp_path / "results" / "report.json")
    assert (card.cases, [part.edits for part in card.together]) == (3, [1, 2])
    assert card.row(EDIT).n == 3
    assert card.row(SAME_QUESTION).n > 0
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert data.records["test"][0].prompt in page


def test_processes_that_do_not_write_make_the_card_too(
    tmp_path: Path, editor: MEND, data: EditDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the base model is sharded, all have to run its passes."""
    made: list[int] = []
    monkeypatch.setattr("callbacks.report.make_report", lambda _lm, _method, cases, **_: made.append(len(cases)))
    WriteReport(count=2).on_test_end(trainer(tmp_path, data, is_global_zero=False), editor)
    assert made == [2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attributes", [{"fast_dev_run": True}, {"datamodule": None}])
def test_there_is_no_card_of_a_trial_or_of_other_data(
    tmp_path: Path, editor: MEND, data: EditDataModule, attributes: dict[str, Any]
) -> None:
    WriteReport().on_test_end(trainer(tmp_path, data, **attributes), editor)
    assert not list(tmp_path.iterdir())


def test_no_record_no_card(tmp_path: Path, editor: MEND, data: EditDataModule) -> None:
    WriteReport(count=0).on_test_end(trainer(tmp_path, data), editor)
    assert not list(tmp_path.iterdir())


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(EditorError, match=r"WriteReport\.count must be at least 0, got -1"):
        WriteReport(count=-1)


def test_after_training_the_card_is_of_validation_records_if_asked_for(
    tmp_path: Path, editor: MEND, tiny_world: TinyWorld
) -> None:
    module = EditDataModule(editor.base_model, [], [ZsRE("test.json")], [], path=str(tiny_world.data))
    module.setup("fit")
    WriteReport(count=2).on_fit_end(trainer(tmp_path, module), editor)
    assert not list(tmp_path.iterdir())
    WriteReport(count=2, after_fit=True).on_fit_end(trainer(tmp_path, module), editor)
    assert ReportCard.load(tmp_path / "results" / "report.json").cases == 2
