"""The WikiBigEdit reader: its kind of locality, selection by row number, and the real file with its splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.leaks import find_leaks
from datamodules.records import EditRecord, Probe
from datamodules.sources import WikiBigEdit
from datamodules.wikibigedit import read_wikibigedit
from editors.common.errors import DataError

_ROW: dict[str, Any] = {
    "prompt": "In which city did John D. Terry pass away?",
    "target_new": "Brooklyn",
    "subject": "John D. Terry",
    "rephrase_prompt": "Where did John D. Terry pass away?",
    "locality_prompt": "In which place did John Derry pass away?",
    "locality_ground_truth": "Farnborough",
}


def _write(folder: Path, rows: Any, name: str = "wiki.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows))
    return file


def _rows(*targets: str) -> list[dict[str, Any]]:
    return [{**_ROW, "target_new": target} for target in targets]


def test_a_row_becomes_a_record_with_locality_near_the_edit(tmp_path: Path) -> None:
    assert read_wikibigedit(_write(tmp_path, [_ROW])) == [
        EditRecord(
            prompt="In which city did John D. Terry pass away?",
            target_new="Brooklyn",
            subject="John D. Terry",
            rephrases=("Where did John D. Terry pass away?",),
            locality=(Probe("In which place did John Derry pass away?", "Farnborough"),),
            source="wiki.json row 0",
        )
    ]


def test_every_broken_row_is_reported_with_its_reason(tmp_path: Path) -> None:
    broken = {
        "prompt must be text, got float 1.5": {**_ROW, "prompt": 1.5},
        "target_new is empty": {**_ROW, "target_new": "\n"},
        "subject is missing": {key: value for key, value in _ROW.items() if key != "subject"},
        "subject 'John Terry' is not in prompt": {**_ROW, "subject": "John Terry"},
        "rephrase_prompt must be text, got NoneType None": {**_ROW, "rephrase_prompt": None},
        "locality_prompt is empty": {**_ROW, "locality_prompt": ""},
        "locality_ground_truth must be text, got list ['Farnborough']": {
            **_ROW,
            "locality_ground_truth": ["Farnborough"],
        },
        "locality_prompt 'Where \\ud800' is no text in Unicode": {**_ROW, "locality_prompt": "Where \ud800"},
        "must be an object, got str 'John D. Terry'": "John D. Terry",
    }
    file = _write(tmp_path, [*broken.values(), _ROW])
    with pytest.raises(DataError) as caught:
        read_wikibigedit(file)
    message = str(caught.value)
    assert f"{file}: {len(broken)} of {len(broken) + 1} row(s) are broken" in message
    for number, fault in enumerate(broken):
        assert f"\n  wiki.json row {number}: {fault}" in message
    assert len(read_wikibigedit(file, skip_invalid=True)) == 1


def test_row_numbers_select_rows_in_file_order(tmp_path: Path) -> None:
    file = _write(tmp_path, [*_rows("a", "b"), "not selected, so not read", *_rows("d")])
    chosen = read_wikibigedit(file, row_numbers=[3, 0])
    assert [(r.target_new, r.source) for r in chosen] == [("a", "wiki.json row 0"), ("d", "wiki.json row 3")]


def test_a_selected_row_that_is_broken_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 row\(s\) are broken\n  wiki\.json row 1: target_new is empty"):
        read_wikibigedit(_write(tmp_path, _rows("a", "")), row_numbers=[1])


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([0, 2, -1], r"2 of 3 selected row numbers are not in the file \(-1, 2\); it has 2 rows, counted from 0"),
        (
            range(1, 14),
            r"12 of 13 .* \(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.\); .* choose the split that was made for",
        ),
    ],
)
def test_selected_rows_must_be_in_the_file(tmp_path: Path, numbers: Any, shown: str) -> None:
    with pytest.raises(DataError, match=shown):
        read_wikibigedit(_write(tmp_path, _rows("a", "b")), row_numbers=numbers)


def test_the_source_takes_the_named_split(tmp_path: Path) -> None:
    _write(tmp_path, _rows("a", "b", "c"))
    _write(tmp_path, {"train": [0, 2], "test": [1]}, "split.json")

    def targets(**settings: str) -> list[str]:
        source = WikiBigEdit("wiki.json", **settings)
        return [record.target_new for record in source.read(tmp_path, skip_invalid=False)]

    assert targets() == ["a", "b", "c"]
    assert targets(split_file="split.json") == ["a", "c"]
    assert targets(split_file="split.json", split="test") == ["b"]
    with pytest.raises(DataError, match=r"no split named 'val' .*choose one of: test, train"):
        targets(split_file="split.json", split="val")


def test_real_file_and_splits(shared_data: Path) -> None:
    assert len(read_wikibigedit(shared_data / "wikibigedit_3k.json")) == 3000
    splits = {
        split: WikiBigEdit("wikibigedit_3k.json", "wikibigedit_split.json", split).read(shared_data, skip_invalid=False)
        for split in ("train", "val", "test")
    }
    assert {split: len(records) for split, records in splits.items()} == {"train": 1932, "val": 197, "test": 800}
    assert find_leaks(splits) == []
