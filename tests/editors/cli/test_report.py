"""Tests of `python -m editors report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.cli import report
from editors.cli.line import main
from editors.scoring.report import rows
from editors.scoring.report.card import ReportCard
from editors.scoring.report.cases import SAME_QUESTION
from tests.editors.conftest import REQUESTS
from tests.editors.scoring.report.test_abilities import write_tasks
from tests.tiny_world import row

FEW = ("--limit=3", "--together=1,2", "--batch-size=2")


def request_row(number: int) -> dict[str, Any]:
    """A request with texts of every sort."""
    values = row(number)
    return {
        "prompt": values["src"],
        "target": values["alt"],
        "subject": values["subject"],
        "rephrases": [values["rephrase"]],
        "locality": [{"prompt": values["loc"], "answer": values["loc_ans"]}],
        "near": [{"prompt": row(number + 30)["src"], "kind": SAME_QUESTION}],
        "portability": [{"prompt": row(number + 31)["src"], "answer": "Lume", "kind": "one hop"}],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows, one of them bad."""
    lines = [request_row(0), {"prompt": "q"}, request_row(1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_an_editors_card_is_written_and_shown(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The sun rises in the east. " * 20)
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps(["It sets in the west.", {"Text": "So it is dark."}]))
    output = tmp_path / "out"
    files = (f"--texts={texts}", f"--texts={listed}")
    assert run(artifact, f"--data={data}", f"--output={output}", *files, *FEW) == 3
    card = ReportCard.load(output / "report.json")
    assert (card.method, card.cases) == ("mend", 2)
    assert card.base_weights == load_editor(artifact).config.base_weights
    assert [entry["row"] for entry in card.bad] == [2]
    assert set(card.damage) == {"texts.txt", "listed.json"}
    assert [part.edits for part in card.together] == [1, 2]
    assert card.row(SAME_QUESTION).examples[0].prompt in {row(30)["src"], row(31)["src"]}
    assert card.row("portability/one hop").n == 2
    page = (output / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    shown = capsys.readouterr().out
    assert "Report card: mend" in shown
    assert "row 2: EditRequest.target" in shown


def test_the_card_of_a_saved_edit_is_on_its_requests(artifact: Path, tmp_path: Path) -> None:
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    saved, output = tmp_path / "edit.safetensors", tmp_path / "out"
    editor.edit(model, tokenizer, REQUESTS[:2]).save(saved)
    assert run(f"--edit={saved}", f"--output={output}") == 0
    card = ReportCard.load(output / "report.json")
    assert card.cases == 2
    assert {example.prompt for example in card.row(rows.EDIT).examples} == {each.prompt for each in REQUESTS[:2]}
    several = tmp_path / "several.safetensors"
    editor.edit_each(model, tokenizer, REQUESTS[:2]).save(several)
    assert run(f"--edit={several}", f"--output={tmp_path / 'other'}") == 1
    assert not (tmp_path / "other").exists()


def test_what_is_wrong_is_said_before_the_model_is_loaded(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "load_base_model", None)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("{}\n")
    new = f"--output={tmp_path / 'new'}"
    for arguments, code, message in (
        ((artifact, f"--data={data}", f"--output={tmp_path}"), 1, "exists already"),
        ((artifact, new), 2, "needs either --data"),
        ((f"--data={data}", new), 2, "needs the folder of an exported editor"),
        ((artifact, f"--data={empty}", new), 1, "no edit request that can be used; row 1"),
        ((artifact, f"--data={tmp_path / 'none.jsonl'}", new), 1, "none.jsonl"),
        ((artifact, f"--data={data}", f"--texts={tmp_path / 'none.txt'}", new), 1, "none.txt"),
        ((artifact, f"--data={data}", new, "--task-limit=3"), 2, "about --tasks, which names the tasks"),
        ((artifact, f"--data={data}", new, "--tasks=a", f"--task-folder={tmp_path / 'none'}"), 2, "no such folder"),
    ):
        assert run(*arguments) == code
        assert message in " ".join(capsys.readouterr().err.split())
    for wrong in ("--together=1,x", "--tasks=,", "--task-limit=0"):
        with pytest.raises(SystemExit):
            run(artifact, f"--data={data}", new, wrong)


@pytest.mark.filterwarnings("ignore")
def test_general_ability_is_in_json_table_and_page(
    artifact: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'hyperedit[abilities]'")
    tasks, output = write_tasks(tmp_path), tmp_path / "out"
    given = ("--tasks=tiny_choice,tiny_shots", f"--task-folder={tasks}", "--task-limit=4")
    assert run(artifact, f"--data={data}", f"--output={output}", *given, *FEW) == 3
    card = ReportCard.load(output / "report.json")
    assert [(each.task, each.metric, each.n) for each in card.abilities] == [
        ("tiny_choice", "acc", 4),
        ("tiny_shots", "acc", 4),
    ]
    assert "tiny_choice" in capsys.readouterr().out
    assert "<td>tiny_choice</td><td>acc</td><td>4</td>" in (output / "report.html").read_text()
