"""Result tables made from a run's results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import results_table
from editors.common.errors import EditorError
from editors.scoring.report.card import ReportCard, ReportRow
from editors.scoring.report.damage import Damage
from editors.scoring.report.intervals import Number

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


def test_a_report_card_is_a_table_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = ReportRow(
        "edit", "the edit's prompt", "target", "exact_match", 4, 4, 0,
        {"exact_match": Number(0.75, 0.5, 1.0), "says_target": Number(1.0, 1.0, 1.0)}, {},
    )  # fmt: skip
    near = ReportRow(
        "near", "another subject", "keep", "answer_kept", 8, 4, 0,
        {name: Number(0.125, 0.0, 0.25) for name in ("answer_kept", "says_target", "newly_says_target")}, {},
    )  # fmt: skip
    hurt = {"wiki.txt": Damage("0" * 64, 10, 1, 20.0, 21.5, 21.5, 0.1)}
    card = ReportCard("mend", "m", "w", "0123456789abcdef0123", 4, 0, {}, {"torch": "2"}, (edit, near), damage=hurt)
    card.save(tmp_path / "report.json")
    page = tmp_path / "page.md"
    page.write_text("<!-- results:near -->\n<!-- /results -->\n")
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "report.json"), f"--into={page}", "--block=near"])
    results_table.main()
    lines = page.read_text().splitlines()
    assert "| the edit's prompt | 4 | 75.0 | 50.0–100.0 | 100.0 |" in lines
    assert "| another subject | 8 | 12.5 | 0.0–25.0 | 12.5 |" in lines
    assert "| perplexity of wiki.txt: 20.00 → 21.50 | | | | |" in lines
    assert {"- data: `0123456789abcdef`", "- versions: `torch 2`"} <= set(lines)


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(EditorError, match="no block <!-- results:zsre --> to fill"):
        results_table.replace_block("nothing here", "zsre", "")


def test_results_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(EditorError, match=r"metrics\.json is missing; name the folder of a finished"):
        results_table.read_results(tmp_path)
