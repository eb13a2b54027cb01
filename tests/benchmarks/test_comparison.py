"""Editors side by side, on the tiny world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison
from benchmarks.comparison import Cost, comparison_table, measure_cost
from callbacks.export import export_artifact
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.methods.ke.module import KE
from editors.methods.mend.module import MEND
from editors.texts.requests import EditRequest
from tests.editors.conftest import TINY
from tests.tiny_world import TinyWorld

MILLION = 1_000_000


def results(reliability: float, test: str = "a" * 64) -> dict[str, Any]:
    metrics = {
        "before/reliability/teacher_forced/token_accuracy": 0.2,
        "reliability/teacher_forced/token_accuracy": reliability,
        "locality/teacher_forced/token_agreement": 0.96,
    }
    return {
        "metrics": metrics,
        "base_weights": "b" * 64,
        "split": "test",
        "data": {"test": test},
        "command": "train.py",
    }


def artifact(world: TinyWorld, folder: Path, name: str) -> Path:
    base = BaseModelConfig(str(world.model), dtype="float32", num_blocks=2)
    editor = MEND(base, TINY) if name == "mend" else KE(base)
    editor.configure_model()
    return export_artifact(editor, folder / name, {})


def finished_run(folder: Path, found: dict[str, Any]) -> Path:
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "metrics.json").write_text(json.dumps(found))
    return folder


def test_each_editor_has_its_scores_and_costs_beside_the_unedited_model() -> None:
    costs = [Cost(0.25, 3 * MILLION, 40 * MILLION), Cost(1.5, 5 * MILLION, 2_000 * MILLION)]
    lines = comparison_table(["mend", "ke"], [results(0.99), results(0.9)], costs).splitlines()
    assert lines[0].startswith("| editor | reliability | generality | locality |")
    assert lines[2] == "| none | 20.0 |  |  |  |  |  |  |  |  |"
    assert lines[3] == "| mend | 99.0 |  | 96.0 |  |  |  | 0.25 | 3.0 | 40 |"
    assert lines[4] == "| ke | 90.0 |  | 96.0 |  |  |  | 1.50 | 5.0 | 2,000 |"


@pytest.mark.parametrize("other", [results(0.9, test="c" * 64), {**results(0.9), "base_weights": "d" * 64}])
def test_runs_that_cannot_be_compared_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(EditorError, match=r"differ in base_weights|other test data"):
        comparison.check_comparable([results(0.99), other])


def test_costs_are_those_of_the_editor_and_the_first_edit_warms_up(
    tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def seconds(function: Callable[[], object]) -> float:
        made.append(function())
        return (90.0, 3.0, 1.0, 2.0)[len(made) - 1]

    monkeypatch.setattr(comparison, "cpu_seconds", seconds)
    monkeypatch.setattr(comparison, "resident_bytes", lambda: 20)
    monkeypatch.setattr(comparison, "peak_bytes", lambda: 50)
    folder = artifact(tiny_world, tmp_path, "mend")
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    editor = MEND(base, TINY)
    editor.configure_model()
    cost = measure_cost(str(folder), base, [EditRequest("Song 1 was sung by", "Anna")] * 4, 1)
    parameters = sum(parameter.numel() for parameter in editor.network.parameters())
    assert cost == Cost(seconds=2.0, parameters=parameters, memory=30)
    assert all(isinstance(edit, LowRankEdit) for edit in made)


@pytest.mark.slow
def test_table_of_two_editors_is_written_into_a_page(tiny_world: TinyWorld, zsre: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results:all -->\nold\n<!-- /results -->\nafter\n")
    chosen: list[str] = []
    for name, reliability in (("mend", 0.99), ("ke", 0.9)):
        run = finished_run(tmp_path / f"run_{name}", results(reliability))
        chosen += ["--editor", str(run), str(artifact(tiny_world, tmp_path, name))]
    comparison.main([*chosen, "--path", str(zsre), "--requests", "3", "--into", str(page), "--block", "all"])
    text = page.read_text()
    assert "| mend | 99.0 |" in text
    assert "| ke | 90.0 |" in text
    assert "old" not in text
