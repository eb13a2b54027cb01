"""Records, the report of broken rows, and the loading of JSON and JSONL files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from datamodules.json_files import Row, load_json, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.common.errors import DataError


def _parse(row: Row) -> EditRecord:
    return EditRecord(prompt=row.text("prompt"), target_new=row.text("target"), source=row.source)


def test_template_takes_the_subject_out_of_the_prompt() -> None:
    record = EditRecord(prompt="What is the capital of France?", target_new="Lyon", subject="France")
    assert record.template == "What is the capital of {}?"
    assert EditRecord(prompt="Name a city.", target_new="Lyon").template == "Name a city."


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"target_new": ""}, "target_new is empty"),
        ({"target_new": 7}, "target_new must be text, got int 7"),
        ({"ground_truth": None}, "ground_truth must be text .*, got NoneType None"),
        ({"subject": "Spain"}, "subject 'Spain' is not in prompt 'Capital of France'"),
        ({"rephrases": "Which?"}, "rephrases must be a tuple of texts, got str 'Which\\?'"),
        ({"rephrases": ("Which?", "")}, r"rephrases\[1\] is empty"),
    ],
)
def test_record_refuses_unusable_fields(fields: dict[str, Any], message: str) -> None:
    usable: dict[str, Any] = {"prompt": "Capital of France", "target_new": "Lyon"}
    with pytest.raises(DataError, match=message):
        EditRecord(**{**usable, **fields})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": 7}, r"^rewrite\.labels must be text, got int 7"),
        ({"labels": " "}, r"^rewrite\.labels is empty"),
        ({"target_new": None, "labels": "x"}, r"^rewrite\.target_new must be text"),
        ({}, r"^rewrite\.target_new or labels is missing"),
    ],
)
def test_the_field_at_fault_is_named_where_there_are_several_names(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Row("x.json row 0", values, prefix="rewrite.").text("target_new", "labels")


def test_probe_needs_an_answer() -> None:
    with pytest.raises(DataError, match="answer is empty"):
        Probe("who?", "")


def test_all_broken_rows_are_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    lines = [
        b'{"prompt": "a", "target": " b "}',
        b"",
        b'{"prompt": "a"',
        b'{"prompt": "\xff", "target": "b"}',
        b"[1]",
        b'{"prompt": "a"}',
        b'{"prompt": "a", "target": ["b"]}',
    ]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        parse_rows(load_rows(file), _parse, file)
    message = str(caught.value)
    assert f"{file}: 5 of 6 row(s) are broken" in message
    assert "edits.jsonl line 3: not valid JSON" in message
    assert "edits.jsonl line 4: not UTF-8 (byte 0xff at offset 12)" in message
    assert "edits.jsonl line 5: must be an object, got list [1]" in message
    assert "edits.jsonl line 6: target is missing" in message
    assert "edits.jsonl line 7: target must be text, got list ['b']" in message
    assert "skip_invalid: true" in message


def test_skip_invalid_counts_and_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "edits.json"
    file.write_text('[{"prompt": "a"}, {"prompt": "a", "target": " b "}]')
    with caplog.at_level(logging.WARNING):
        records = parse_rows(load_rows(file), _parse, file, skip_invalid=True)
    assert records == [EditRecord(prompt="a", target_new="b", source="edits.json row 1")]
    assert "1 of 2 row(s) are broken" in caplog.text
    assert "edits.json row 0: target is missing" in caplog.text


def test_long_reports_are_cut_but_counted() -> None:
    rows = [Row(f"x row {number}", fault="torn") for number in range(25)]
    with pytest.raises(DataError, match=r"25 of 25 row(?s:.)*x row 19: torn\n  \.\.\. and 5 more"):
        parse_rows(rows, _parse, "x")


def test_a_file_without_usable_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    file.write_text('[{"prompt": "a"}]')
    with pytest.raises(DataError, match="no usable row"):
        parse_rows(load_rows(file), _parse, file, skip_invalid=True)
    with pytest.raises(DataError, match="no usable row"):
        parse_rows([], _parse, file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"rows": []}', "must hold a list of rows, got dict"),
        (b'[{"prompt": "caf\xe9"}]', "not UTF-8 .byte 0xe9 at offset 16.; save it as UTF-8"),
        (b'[{"prompt" 1}]', "not valid JSON .Expecting ':' delimiter: line 1 column 12"),
        (b'{"a": 1}\n{"a": 2}', "must be named .jsonl"),
    ],
)
def test_unreadable_json_names_file_and_reason(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "edits.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"edits.json: .*{message}"):
        load_rows(file)


def test_missing_file_is_named_in_full(tmp_path: Path) -> None:
    for load in (load_rows, load_json):
        with pytest.raises(DataError, match=f"^{tmp_path}/no.json cannot be read .No such file"):
            load(tmp_path / "no.json")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        load_rows(tmp_path)


def test_nested_fields_are_named_by_their_path() -> None:
    row = Row("x row 0", {"edit": {"old": {"str": ""}}, "names": ["a", 1], "probes": [{"q": "?"}, 3], "none": None})
    assert row.optional_part("none").values == row.optional_part("absent").values == {}
    with pytest.raises(DataError, match=r"^edit.old.str is empty"):
        row.part("edit").part("old").text("str")
    with pytest.raises(DataError, match=r"^names\[1\] must be text, got int 1"):
        row.texts("names")
    with pytest.raises(DataError, match=r"^probes\[1\] must be an object, got int 3"):
        row.parts("probes")
    with pytest.raises(DataError, match=r"^edit must be a list, got dict"):
        row.parts("edit")
    with pytest.raises(DataError, match=r"^subject or concept is missing"):
        row.text("subject", "concept")
