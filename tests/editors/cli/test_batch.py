"""Tests of `python -m editors batch` and of `editors.serving.batch`."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.cli import batch
from editors.cli.journal import journal
from editors.cli.line import main
from editors.common.errors import EditorError
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.scoring.names import before_edit
from editors.serving.batch import GENERALITY, LOCALITY, RELIABILITY, BatchEditor, DoneRow
from editors.texts.forms import chat_prompt
from editors.texts.request_files import BadRow, RequestRow
from tests.editors.conftest import REQUESTS
from tests.tiny_world import TinyWorld, chatting, row

ROOT = Path(__file__).parents[3]
TOO_LONG = json.dumps({"prompt": "x " * 99, "target": "a"})
BAD_LINES = ["{", '"text"', '{"prompt": "q"}', '{"prompt": "", "target": "a"}', TOO_LONG]


def request_row(number: int) -> dict[str, Any]:
    """A request with paraphrase and locality."""
    values = row(number)
    locality = [{"prompt": values["loc"], "answer": values["loc_ans"]}]
    return {"prompt": values["src"], "target": values["alt"], "rephrases": [values["rephrase"]], "locality": locality}


def write_requests(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def run(artifact: Path, requests: Path, output: Path, *more: str) -> int:
    return main(["batch", str(artifact), str(requests), f"--output={output}", *more])


def test_good_rows_are_done_and_reported(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = write_requests(tmp_path / "r.jsonl", [request_row(number) for number in range(5)])
    assert run(artifact, requests, tmp_path / "out", "--batch-size=2", "--save-edits") == 0
    rows = read_rows(tmp_path / "out")
    assert [(line["row"], line["status"]) for line in rows] == [(number, "done") for number in range(1, 6)]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["rows"], report["done"], report["bad"]) == (5, 5, [])
    for name, value in report["metrics"].items():
        assert value == pytest.approx(sum(line["scores"][name] for line in rows) / 5)
    assert {name.split("/")[0] for name in report["metrics"]} == {"before", "reliability", "generality", "locality"}
    assert report["seconds_per_edit"] > 0
    assert "5 done, 0 bad" in capsys.readouterr().out
    table = list(csv.DictReader((tmp_path / "out/rows.csv").read_text().splitlines()))
    assert [(int(line["row"]), float(line[RELIABILITY])) for line in table] == [
        (line["row"], line["scores"][RELIABILITY]) for line in rows
    ]
    saved = LowRankEdit.load(tmp_path / "out/edits/3.safetensors")
    assert saved.metadata["requests"] == [{"prompt": row(2)["src"], "target": row(2)["alt"]}]


# --- forms -----------------------------------------------------------------------------------------------------------

WARNING = 'in which edits made in bare form seldom hold; give a row the field "form": "chat"\n'


@pytest.fixture(scope="module")
def chatty(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option for the base model with a chat template."""
    return f"--model={chatting(tiny_world, tmp_path_factory.mktemp('chat') / 'model')}"


def test_rows_in_chat_form_are_edited_and_scored_in_the_template(
    artifact: Path, chatty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{**request_row(0), "form": "chat"}, request_row(0), {**request_row(1), "form": "Chat"}]
    assert run(artifact, write_requests(tmp_path / "r.jsonl", lines), tmp_path / "out", chatty, "--save-edits") == 3
    chat, bare, bad = read_rows(tmp_path / "out")
    assert (chat["form"], "form" in bare) == ("chat", False)
    assert "EditRequest.form must be one of bare, chat, got 'Chat'" in bad["error"]
    chat_edit, bare_edit = (LowRankEdit.load(tmp_path / f"out/edits/{number}.safetensors") for number in (1, 2))
    assert chat_edit.metadata["requests"] == [{**bare_edit.metadata["requests"][0], "form": "chat"}]
    site = next(iter(chat_edit.updates))
    assert not torch.equal(chat_edit.updates[site].weight_delta(), bare_edit.updates[site].weight_delta())
    assert json.loads((tmp_path / "out/report.json").read_text())["chat_form"] == 1
    shown = capsys.readouterr().out
    assert "1 of them in chat form" in " ".join(shown.split())
    assert WARNING not in shown


def test_texts_of_a_chat_row_are_scored_in_the_template(artifact: Path, chatty: str) -> None:
    editor, base = load_editor(artifact), BaseModelConfig(chatty.removeprefix("--model="))
    model, tokenizer = load_base_model(base), load_tokenizer(base)
    question, target = REQUESTS[0].prompt, REQUESTS[0].target
    chat = RequestRow(1, replace(REQUESTS[0], form="chat"), (question,), ((question, target),))
    tokens = BatchEditor(editor, model, tokenizer)._batch([chat])
    wanted = [tokenizer(chat_prompt(tokenizer, question))["input_ids"]]
    assert tokens.edit.prompt_ids() == tokens.rephrase.prompt_ids() == tokens.locality.prompt_ids() == wanted


def test_a_chat_row_for_a_model_without_a_template_is_bad(artifact: Path, tmp_path: Path) -> None:
    lines = [{**request_row(0), "form": "chat"}, request_row(1)]
    assert run(artifact, write_requests(tmp_path / "r.jsonl", lines), tmp_path / "out") == 3
    bad, good = read_rows(tmp_path / "out")
    assert "has no chat template; use form bare" in bad["error"]
    assert good["status"] == "done"
    assert "chat_form" not in json.loads((tmp_path / "out/report.json").read_text())


@pytest.mark.parametrize(("line", "warned"), [(request_row(0), True), ("{", False)])
def test_a_batch_of_bare_edits_for_a_chat_model_is_warned_of(
    line: Any, warned: bool, artifact: Path, chatty: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(artifact, write_requests(tmp_path / "r.jsonl", [line]), tmp_path / "out", chatty)
    assert (WARNING in capsys.readouterr().out) == warned


def test_no_batch_for_another_model_is_warned_of(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(artifact, write_requests(tmp_path / "r.jsonl", [request_row(0)]), tmp_path / "out")
    assert "chat" not in capsys.readouterr().out


# --- bad rows, batches and scores ------------------------------------------------------------------------------------


def test_bad_rows_are_reported_by_number_and_the_others_done(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = [request_row(0), *BAD_LINES, request_row(1)]
    assert run(artifact, write_requests(tmp_path / "r.jsonl", lines), tmp_path / "out") == 3
    rows = read_rows(tmp_path / "out")
    assert [line["status"] for line in rows] == ["done", *["bad"] * len(BAD_LINES), "done"]
    table = list(csv.DictReader((tmp_path / "out/rows.csv").read_text().splitlines()))
    assert [line["status"] for line in table] == [line["status"] for line in rows]
    assert table[1]["error"] == rows[1]["error"]
    bad = json.loads((tmp_path / "out/report.json").read_text())["bad"]
    assert [entry["row"] for entry in bad] == [2, 3, 4, 5, 6]
    assert "tokens, but the base model's limit is " in bad[-1]["error"]
    assert "row 2: no JSON" in capsys.readouterr().out


def test_file_without_a_good_row_and_an_empty_one(artifact: Path, tmp_path: Path) -> None:
    assert run(artifact, write_requests(tmp_path / "bad.jsonl", ["{"]), tmp_path / "bad") == 3
    assert run(artifact, write_requests(tmp_path / "empty.jsonl", []), tmp_path / "empty") == 0
    assert json.loads((tmp_path / "empty/report.json").read_text())["seconds_per_edit"] is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_edits_and_scores_do_not_depend_on_the_batch(artifact: Path, batch_size: int) -> None:
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    rows = [RequestRow(n, request, (request.prompt,), ((row(9)["loc"], "Lume"),)) for n, request in enumerate(REQUESTS)]
    results = list(BatchEditor(editor, model, tokenizer, batch_size).run(rows))
    for result, request in zip(results, REQUESTS, strict=True):
        assert isinstance(result, DoneRow)
        found, wanted = low_rank(result.edit), low_rank(editor.edit(model, tokenizer, [request]))
        for site, update in wanted.updates.items():
            torch.testing.assert_close(found.updates[site].weight_delta(), update.weight_delta())
        # The paraphrase is the prompt itself.
        for prefix in ("", "before/"):
            assert result.scores[f"{prefix}{RELIABILITY}"] == result.scores[f"{prefix}{GENERALITY}"]


def test_scores_are_those_of_the_answers(artifact: Path) -> None:
    """An edit that does nothing leaves everything as before; one that is huge does not."""
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    rows = [RequestRow(1, REQUESTS[0], (), ((row(9)["loc"], "Lume"),))]
    for rate, same in ((0.0, True), (1e4, False)):
        editor.network.get_parameter("edit_rates").fill_(rate)
        (result,) = BatchEditor(editor, model, tokenizer).run(rows)
        assert isinstance(result, DoneRow)
        assert (result.scores[LOCALITY] == 1) == same


def test_edit_that_is_not_finite_is_a_bad_row(artifact: Path) -> None:
    editor = load_editor(artifact)
    editor.network.get_parameter("edit_rates").fill_(torch.inf)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    (result,) = BatchEditor(editor, model, tokenizer).run([RequestRow(1, REQUESTS[0])])
    assert isinstance(result, BadRow)
    assert "not finite" in result.error


def test_row_refused_while_it_is_edited_takes_no_other_with_it(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = load_editor(artifact)
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    make = LoadedEditor.make

    def refuse_second(self: LoadedEditor, lm: Any, episodes: Any) -> Any:
        if [REQUESTS[1]] in episodes:
            raise EditorError("too long together")
        return make(self, lm, episodes)

    monkeypatch.setattr(LoadedEditor, "make", refuse_second)
    rows = [RequestRow(number, request) for number, request in enumerate(REQUESTS[:3], start=1)]
    first, second, third = BatchEditor(editor, model, tokenizer).run(rows)
    assert isinstance(first, DoneRow)
    assert second == BadRow(2, "too long together")
    assert isinstance(third, DoneRow)


def test_batch_size_must_be_positive(artifact: Path) -> None:
    editor = load_editor(artifact)
    with pytest.raises(EditorError, match="at least 1"):
        BatchEditor(editor, load_base_model(editor.base_model), load_tokenizer(editor.base_model), 0)


def test_existing_output_is_refused(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = write_requests(tmp_path / "r.jsonl", [request_row(0)])
    assert run(artifact, requests, tmp_path) == 1
    assert "exists already" in capsys.readouterr().err


# --- going on --------------------------------------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, at_batch: int) -> None:
    """End the process (as far as a test can) when it begins this batch, counted from 1."""
    make, calls = LoadedEditor.make, []

    def crash(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at_batch:
            raise KeyboardInterrupt
        return make(*arguments)

    monkeypatch.setattr(LoadedEditor, "make", crash)


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in ("finished", "seconds", "seconds_per_edit")}


def test_interrupted_batch_goes_on_and_loses_nothing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[Any] = [request_row(0), "{", *(request_row(number) for number in range(1, 6))]
    requests, more = write_requests(tmp_path / "r.jsonl", lines), ("--batch-size=2", "--save-edits")
    assert run(artifact, requests, tmp_path / "whole", *more) == 3
    with monkeypatch.context() as patch:
        interrupt(patch, at_batch=3)
        with pytest.raises(KeyboardInterrupt):
            run(artifact, requests, tmp_path / "parts", *more)
    assert [line["row"] for line in read_rows(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    with (tmp_path / "parts/rows.jsonl").open("a") as file:
        file.write('{"row": 6, "status": "do')  # as a kill in the middle of writing leaves it
    assert run(artifact, requests, tmp_path / "parts", *more, "--resume") == 3
    whole, parts = (list(map(without_times, read_rows(tmp_path / name))) for name in ("whole", "parts"))
    assert parts == whole
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "parts")]
    assert without_times(reports[1]) == without_times(reports[0])
    assert sorted(path.name for path in (tmp_path / "parts/edits").iterdir()) == sorted(
        f"{number}.safetensors" for number in (1, 3, 4, 5, 6, 7)
    )


def test_finished_batch_is_only_reported_again(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `--resume` begins a batch where there is none, so that a pipeline can always say it."""
    requests = write_requests(tmp_path / "r.jsonl", [request_row(0)])
    assert run(artifact, requests, tmp_path / "out", "--resume") == 0
    rows = read_rows(tmp_path / "out")
    (tmp_path / "out/report.json").unlink()
    monkeypatch.setattr(batch, "load_base_model", None)
    assert run(artifact, requests, tmp_path / "out", "--resume") == 0
    assert read_rows(tmp_path / "out") == rows
    assert json.loads((tmp_path / "out/report.json").read_text())["done"] == 1


def test_batch_that_cannot_begin_leaves_no_batch(artifact: Path, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.jsonl", [request_row(0)])
    assert run(artifact, requests, tmp_path / "out", "--model=./no/such/model") == 1
    assert run(artifact, requests, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("begun", "resume", "message"),
    [
        ({"editor": "a", "requests": "b"}, True, None),
        ({"editor": "a", "requests": "b"}, False, "--resume goes on with the batch there"),
        ({"editor": "x", "requests": "b"}, True, "begun with different editor: it cannot be resumed"),
        ({"editor": "x", "requests": "y"}, True, "begun with different editor and requests: it cannot"),
        ({"requests": "b"}, True, "is damaged"),
        ([], True, "is damaged"),
    ],
)
def test_only_the_same_batch_is_resumed(begun: Any, resume: bool, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text(json.dumps(begun))
    (tmp_path / "rows.jsonl").write_text('{"row": 4}\n')
    facts = {"editor": "a", "requests": "b"}
    if message is None:
        with journal(tmp_path, facts, resume=resume) as lines:
            assert lines.rows == [4]
    else:
        with pytest.raises(EditorError, match=message), journal(tmp_path, facts, resume=resume):
            pass
    assert (tmp_path / "rows.jsonl").read_text() == '{"row": 4}\n'


@pytest.mark.parametrize("content", ["x\n", "[]\n", '{"rows": 1}\n'])
def test_damaged_journal_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "batch.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(EditorError, match=r"rows\.jsonl is damaged"), journal(tmp_path, {}, resume=True):
        pass


@pytest.mark.parametrize("resume", [True, False])
def test_second_writer_is_refused(resume: bool, tmp_path: Path) -> None:
    with (
        journal(tmp_path / "out", {}, resume=False) as lines,
        pytest.raises(EditorError, match="written by another process"),
        journal(tmp_path / "out", {}, resume=resume),
    ):
        pass
    assert lines.rows == []


@pytest.mark.slow
def test_batch_killed_in_a_process_of_its_own_goes_on(artifact: Path, tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "r.jsonl", [request_row(number) for number in range(4)])
    script = """
import os, signal, sys
from editors.artifacts.editor import LoadedEditor
from editors.cli.line import main

make, calls = LoadedEditor.make, []
def kill(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*arguments)
LoadedEditor.make = kill
main(sys.argv[1:])
"""
    arguments = ["batch", str(artifact), str(requests), f"--output={tmp_path / 'out'}", "--batch-size=2"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["row"] for line in read_rows(tmp_path / "out")] == [1, 2]
    assert main([*arguments, "--resume"]) == 0
    assert [line["row"] for line in read_rows(tmp_path / "out")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_ten_thousand_rows_of_which_one_percent_is_broken(artifact: Path, tmp_path: Path) -> None:
    lines: list[Any] = [{"prompt": f"Who founded {number}?", "target": "Lume"} for number in range(10_000)]
    for number in range(50, 10_000, 100):
        lines[number] = BAD_LINES[number // 100 % len(BAD_LINES)]
    assert run(artifact, write_requests(tmp_path / "r.jsonl", lines), tmp_path / "out", "--batch-size=256") == 3
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["rows"], report["done"]) == (10_000, 9_900)
    assert [entry["row"] for entry in report["bad"]] == list(range(51, 10_000, 100))
    assert [line["row"] for line in read_rows(tmp_path / "out")] == list(range(1, 10_001))


def test_rows_that_contradict_one_another_are_counted(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [request_row(1), {**request_row(1), "target": "Halden"}, "{"]
    assert run(artifact, write_requests(tmp_path / "r.jsonl", rows), tmp_path / "out") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 row(s) contradict one another, on 1 question(s)" in shown
    assert "Each edit is made alone, so all of them are made" in shown


def test_edits_that_change_nothing_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [{before_edit(RELIABILITY): value, RELIABILITY: 1.0} for value in (1.0, 0.5)]
    summary = batch._Summary([{"row": 1, "status": "done", "seconds": 1.0, "scores": own} for own in scores])
    summary.show(Console(width=200), tmp_path)
    assert "1 of 2 edit(s) ask for what the base model says without them" in capsys.readouterr().out
