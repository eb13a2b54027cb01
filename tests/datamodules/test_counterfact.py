"""The CounterFact reader: both formats, selection by case id, and split files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.counterfact import read_counterfact, read_split
from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

_FLAT: dict[str, Any] = {
    "case_id": 2,
    "prompt": "Toko Yasuda, the",
    "target_new": "piano",
    "subject": "Toko Yasuda",
    "ground_truth": "guitar",
    "rephrase_prompt": "Toko Yasuda is incredible at",
    "locality_prompt": "John Lennon performs on the",
    "locality_ground_truth": "guitar",
}
_REWRITE: dict[str, Any] = {
    "prompt": "The mother tongue of {} is",
    "relation_id": "P103",
    "target_new": {"str": "English", "id": "Q1860"},
    "target_true": {"str": "French", "id": "Q150"},
    "subject": "Danielle Darrieux",
}
_NESTED: dict[str, Any] = {
    "case_id": 0,
    "requested_rewrite": _REWRITE,
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke"],
    "neighborhood_prompts": ["The native language of Montesquieu is", "Leon Blum speaks"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}


def _write(folder: Path, rows: Any, name: str = "cf.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(rows))
    return file


def test_nested_and_flat_rows_may_be_mixed(tmp_path: Path) -> None:
    nested, flat = read_counterfact(_write(tmp_path, [_NESTED, _FLAT]))
    assert nested == EditRecord(
        prompt="The mother tongue of Danielle Darrieux is",
        target_new="English",
        subject="Danielle Darrieux",
        ground_truth="French",
        rephrases=("Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke"),
        locality=(Probe("The native language of Montesquieu is", "French"), Probe("Leon Blum speaks", "French")),
        relation="P103",
        source="cf.json row 0",
    )
    assert nested.template == _REWRITE["prompt"]
    assert flat == EditRecord(
        prompt="Toko Yasuda, the",
        target_new="piano",
        subject="Toko Yasuda",
        ground_truth="guitar",
        rephrases=("Toko Yasuda is incredible at",),
        locality=(Probe("John Lennon performs on the", "guitar"),),
        source="cf.json row 1",
    )


def test_broken_rows_of_both_formats_are_reported(tmp_path: Path) -> None:
    rows = [
        {**_NESTED, "requested_rewrite": {**_REWRITE, "target_true": "French"}},
        {**_NESTED, "requested_rewrite": {**_REWRITE, "target_new": {"id": "Q1"}}},
        {**_NESTED, "requested_rewrite": {**_REWRITE, "prompt": "Her mother tongue is"}},
        {**_FLAT, "locality_ground_truth": ""},
    ]
    with pytest.raises(DataError) as caught:
        read_counterfact(_write(tmp_path, rows))
    message = str(caught.value)
    assert "row 0: requested_rewrite.target_true must be an object, got str 'French'" in message
    assert "row 1: requested_rewrite.target_new.str is missing" in message
    assert "row 2: subject 'Danielle Darrieux' is not in prompt 'Her mother tongue is'" in message
    assert "row 3: locality_ground_truth is empty" in message


def test_case_ids_select_rows_in_file_order(tmp_path: Path) -> None:
    file = _write(tmp_path, [_FLAT, {**_FLAT, "case_id": 5, "target_new": ""}, _NESTED])
    assert [record.target_new for record in read_counterfact(file, case_ids=[0, 2])] == ["piano", "English"]


def test_selected_case_ids_must_be_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 3 selected case ids are not in the file \(7, 9\); choose the split"):
        read_counterfact(_write(tmp_path, [_FLAT]), case_ids={9, 2, 7})


def test_a_row_without_case_id_cannot_be_selected(tmp_path: Path) -> None:
    file = _write(tmp_path, [_FLAT, {**_FLAT, "case_id": "3"}])
    with pytest.raises(DataError, match=r"cf\.json row 1: case_id is missing or not a whole number"):
        read_counterfact(file, case_ids=[2])
    assert len(read_counterfact(file)) == 2


def test_split_names_are_listed_when_one_is_unknown(tmp_path: Path) -> None:
    file = _write(tmp_path, {"train": [3, 1], "test": [2], "heldout_relations": ["P36"]}, "split.json")
    assert read_split(file, "train") == [3, 1]
    for name in ("dev", "heldout_relations"):
        with pytest.raises(DataError, match=f"no split named '{name}' with case ids; choose one of: test, train"):
            read_split(file, name)
    with pytest.raises(DataError, match="must hold an object of split names and case ids, got list"):
        read_split(_write(tmp_path, [1, 2], "split.json"), "train")


def test_real_files_and_split(shared_data: Path) -> None:
    for name, split, rows, selected in (
        ("train", "train", 10000, 6386),
        ("val", "val", 1919, 1259),
        ("edit", "test", 10000, 9947),
    ):
        file = shared_data / f"counterfact-{name}.json"
        assert len(read_counterfact(file)) == rows
        case_ids = read_split(shared_data / "counterfact_split.json", split)
        assert len(read_counterfact(file, case_ids=case_ids)) == selected
