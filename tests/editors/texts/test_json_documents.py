"""Tests of `editors.texts.json_documents`: files from anybody are read, or refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.json_files import load_rows
from datamodules.records import parse_rows
from datamodules.sources import CounterFact, KnowEdit, MQuAKE, QAEdit, WikiBigEdit, ZsRE
from editors.common.errors import DataError
from editors.texts.json_documents import parsed, read_file, shown
from editors.texts.plain_texts import read_plain_texts
from editors.texts.request_files import BadRow, read_request_rows

NESTED, NUMBER = b"[" * 100_000, b'{"a": ' + b"7" * 5000 + b"}"
READERS: list[Callable[[Path], Any]] = [
    load_rows,
    read_plain_texts,
    lambda path: list(read_request_rows(path)),
    *(
        lambda path, source=source: source(path.name).read(path.parent, skip_invalid=True)
        for source in (ZsRE, CounterFact, KnowEdit, WikiBigEdit, QAEdit, MQuAKE)
    ),
]


@pytest.mark.parametrize("raw", [b"[1]", b"\xef\xbb\xbf[1]"])
def test_a_byte_order_mark_is_no_part_of_a_document(raw: bytes) -> None:
    assert parsed(raw) == [1]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (NESTED, "not valid JSON .nested too deeply: about 1,000 levels of lists and objects are read"),
        (NUMBER, "a whole number of more than 4,300 digits.; write it as text"),
        (b"\xff\xfe[\x00", "not UTF-8 .byte 0xff at offset 0.; save it as UTF-8"),
        (b'{"a": 1}\n{"a": 2}', "must be named .jsonl"),
        (b"", "not valid JSON"),
    ],
)
def test_documents_that_cannot_be_read_say_why(raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parsed(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [NESTED, b"[" + NUMBER + b"]", None])
def test_every_reader_refuses_in_one_line_and_does_not_wait(
    read: Callable[[Path], Any], content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.json") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    if content is None:
        assert "is a pipe or a device, not a file; write what it gives into one first" in str(caught.value)


def test_a_device_and_a_name_that_none_has_are_refused() -> None:
    with pytest.raises(DataError, match=r"/dev/zero is a pipe or a device"):
        read_file(Path("/dev/zero"), "check the path")
    with pytest.raises(DataError, match=r"no name of a file .*; check the path"):
        read_file(Path("a\0b"), "check the path")


def test_rows_with_texts_that_no_tokenizer_should_read_are_broken(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Who?", "target": "%s"}\n{"prompt": "Who?", "target": "Anna"}\n' % ("a" * 10_000_000))
    bad, good = read_request_rows(file)
    assert isinstance(bad, BadRow)
    assert bad.error.endswith("has 10,000,000 characters; at most 100,000 are read")
    assert good.number == 2
    assert len(bad.error) < 200
    with pytest.raises(DataError, match=r"target 'aaa.*' has 10,000,000 characters; at most 100,000 are read"):
        parse_rows(load_rows(file), lambda row: row.text("target"), file)


def test_values_that_python_cannot_write_are_named_by_their_type() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "list"
    assert shown(10**5000) == "int"
    assert shown("a" * 100) == f"str '{'a' * 79}..."
