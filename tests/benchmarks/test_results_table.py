"""Result tables made from a run's results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import results_table
from editors.common.errors import EditorError

RESULTS = {
    "metrics": {
        "before/reliability/teacher_forced/token_accuracy": 0.25,
        "reliability/teacher_forced/token_accuracy": 0.987,
        "locality/teacher_forced/token_agreement": 0.96,
        "loss/edit": 0.1,
        "unseen_template/before/reliability/teacher_forced/token_accuracy": 0.2,
        "unseen_template/reliability/teacher_forced/token_accuracy": 0.9,
        "unseen_template/loss/edit": 0.2,
    },
    "data": {"test": "0123456789abcdef0123"},
    "edit_sites": ["a", "b"],
    "seed": 7,
}


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text(json.dumps(RESULTS))
    return tmp_path


def test_each_measure_stands_beside_its_value_before() -> None:
    lines = results_table.results_table(RESULTS).splitlines()
    assert "| reliability/teacher_forced/token_accuracy | 25.0 | 98.7 |" in lines
    assert "| unseen_template/reliability/teacher_forced/token_accuracy | 20.0 | 90.0 |" in lines
    assert "| locality/teacher_forced/token_agreement |  | 96.0 |" in lines
    assert "- data: `test 0123456789abcdef`" in lines
    assert not any("loss" in line or "edit_sites" in line for line in lines)


def test_a_block_is_replaced_and_the_rest_stays(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = finished_run / "page.md"
    page.write_text("before\n<!-- results:a -->\nold\n<!-- /results -->\n<!-- results:b -->\nold\n<!-- /results -->\n")
    options = [str(finished_run), f"--into={page}", "--block=b"]
    monkeypatch.setattr(sys, "argv", ["results_table", *options])
    results_table.main()
    text = page.read_text()
    assert text.startswith("before\n<!-- results:a -->\nold\n<!-- /results -->\n<!-- results:b -->\n| metric")
    assert text.endswith("<!-- /results -->\n")
    assert "- seed: `7`" in text


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(EditorError, match="no block <!-- results:zsre --> to fill"):
        results_table.replace_block("nothing here", "zsre", "")


def test_results_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EditorError, match=r"metrics\.json is missing; name the folder of a finished"):
        results_table.read_results(tmp_path)
