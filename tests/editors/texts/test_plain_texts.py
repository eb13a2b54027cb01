"""The reader of plain texts: WikiText's paragraphs, lists of texts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.common.errors import DataError
from editors.texts.plain_texts import read_plain_texts, read_running_texts

_BOM = b"\xef\xbb\xbf"


def _write(folder: Path, content: Any, name: str = "texts.json") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def test_texts_and_objects_may_be_mixed(tmp_path: Path) -> None:
    rows = [{"Corpus": "C4", "Text": " Swift hugged her mother"}, "An old\nname \U0001f600", {"Text": "= No heading ="}]
    assert read_plain_texts(_write(tmp_path, rows)) == [
        "Swift hugged her mother",
        "An old\nname \U0001f600",
        "= No heading =",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_paragraphs_without_headings_and_blank_lines(tmp_path: Path, end: str) -> None:
    lines = [
        " ",
        " = Homarus gammarus = ",
        "",
        " Homarus gammarus , the lobster , weighs 5 – 6 kilograms . ",
        " = = Early career = = ",
        " = = = 2000 – 2005 = = = ",
        " = <unk> for the next round ",
        " x = y = ",
        " a form\x0bfeed and a line\u2028separator stay in their paragraph",
        " = =",
        "no line end",
    ]
    assert read_plain_texts(_write(tmp_path, end.join(lines).encode(), "wiki.txt")) == [
        "Homarus gammarus , the lobster , weighs 5 – 6 kilograms .",
        "= <unk> for the next round",
        "x = y =",
        "a form\x0bfeed and a line\u2028separator stay in their paragraph",
        "= =",
        "no line end",
    ]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_plain_texts(_write(tmp_path, _BOM + b'["caf\xc3\xa9"]')) == ["café"]
    assert read_plain_texts(_write(tmp_path, _BOM + b" = Title = \nText\n", "wiki.txt")) == ["Text"]


def test_every_broken_row_is_reported_with_its_reason(tmp_path: Path) -> None:
    broken: dict[str, Any] = {
        "Text is missing": {"text": "a"},
        "Text must be text, got NoneType None": {"Text": None},
        "Text must be text, got list ['a']": {"Text": ["a"]},
        "Text is empty": {"Text": " \n"},
        "the text is empty": "",
        "must be a text, or an object with the field Text, got int 3": 3,
        "must be a text, or an object with the field Text, got list ['a']": ["a"],
        "the text 'half \\ud83d' is no text in Unicode": {"Text": "half \ud83d"},
        "the text '\\udc00' is no text in Unicode": "\udc00",
    }
    file = _write(tmp_path, ["good", *broken.values()])
    with pytest.raises(DataError) as caught:
        read_plain_texts(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: {len(broken)} of {len(broken) + 1} row(s) are broken\n")
    for number, fault in enumerate(broken, start=1):
        assert f"\n  texts.json row {number}: {fault}" in message
    assert message.endswith("\nMend the file.")


def test_a_long_list_of_broken_rows_is_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)^.*25 of 25 row.* row 19: the text is empty\n  \.\.\. and 5 more\nMend"):
        read_plain_texts(_write(tmp_path, [""] * 25))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ([], "texts.json", "holds no text"),
        (b"\n = Title = \n", "wiki.txt", "holds no text"),
        (b"", "wiki.txt", "holds no text"),
        ({"Text": "a"}, "texts.json", "must hold a list of texts, got dict"),
        (b"A paragraph.", "texts", "not valid JSON .* must be named .txt"),
        (b"[" * 100_000, "texts.json", "not valid JSON"),
        (b'["caf\xe9"]', "texts.json", "not UTF-8 .* at offset 5.; save it as UTF-8"),
        (b"caf\xe9 au lait", "wiki.txt", "not UTF-8 .* at offset 3.; save it as UTF-8"),
        ("bac".encode("utf-16"), "wiki.txt", "not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, content: Any, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_plain_texts(_write(tmp_path, content, name))
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt cannot be read \(No such file or directory\)"):
        read_plain_texts(tmp_path / "absent.txt")


def test_files_go_by_their_names_and_by_their_paths_where_those_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [_write(tmp_path, ["a", "b"]), _write(tmp_path, b"c\n", "wiki.txt"), _write(tmp_path / "other", ["d"])]
    assert read_running_texts(files) == {"texts.json": ["a", "b"], "wiki.txt": ["c"], str(files[2]): ["d"]}


def test_real_files(shared_data: Path) -> None:
    assert len(read_plain_texts(shared_data / "me_ppl_1k.json")) == 1000
    paragraphs = read_plain_texts(shared_data / "wikitext2_valid.txt")
    assert len(paragraphs) == 2461 - 620
    assert not any(paragraph.startswith("= ") for paragraph in paragraphs)
