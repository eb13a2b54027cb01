"""The zsRE reader, on hand-written rows and on the real files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.records import EditRecord, Probe
from datamodules.zsre import read_zsre
from editors.common.errors import DataError

_ROW: dict[str, Any] = {
    "subject": "Turkhan",
    "src": "Who was the father of Turkhan?",
    "alt": " Alexander",
    "rephrase": "Whose child was Turkhan?",
    "answers": ["Bahram", "Bahram I"],
    "loc": "nq question: who wrote hamlet",
    "loc_ans": "Shakespeare",
}


def _write(folder: Path, *rows: Any) -> Path:
    file = folder / "zsre.json"
    file.write_text(json.dumps(list(rows)))
    return file


def test_a_mend_row_becomes_a_record(tmp_path: Path) -> None:
    assert read_zsre(_write(tmp_path, _ROW)) == [
        EditRecord(
            prompt="Who was the father of Turkhan?",
            target_new="Alexander",
            subject="Turkhan",
            ground_truth="Bahram",
            rephrases=("Whose child was Turkhan?",),
            locality=(Probe("nq question: who wrote hamlet", "Shakespeare"),),
            source="zsre.json row 0",
        )
    ]


def test_portability_questions_of_both_sources_are_merged(tmp_path: Path) -> None:
    question = {"Recalled Relation": "(...)", "New Question": "Who was his grandfather?", "New Answer": "Philip"}
    repeated = {"prompt": "Who was his grandfather? ", "ground_truth": "Philip"}
    alias = {"prompt": "Who was the father of T.?", "ground_truth": "Alexander"}
    knowedit = {"Reasoning": [repeated], "Subject_Aliasing": [alias], "Logical_Generalization": []}
    file = _write(tmp_path, {**_ROW, "portability": question, "knowedit_portability": knowedit})
    assert read_zsre(file)[0].portability == {
        "Reasoning": (Probe("Who was his grandfather?", "Philip", "Reasoning"),),
        "Subject_Aliasing": (Probe("Who was the father of T.?", "Alexander", "Subject_Aliasing"),),
    }


def test_knowedit_locality_that_restates_the_edit_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    restated = {"prompt": "The father of Turkhan is", "ground_truth": ["bahram i"]}
    other = {"prompt": "The mother of Turkhan is", "ground_truth": ["Roxana"]}
    file = _write(tmp_path, {**_ROW, "locality": {"Relation_Specificity": [restated, other]}})
    with caplog.at_level(logging.INFO):
        (record,) = read_zsre(file)
    assert [probe.answer for probe in record.locality] == ["Shakespeare", "Roxana"]
    assert "left out 1 probe(s) that ask for the edited fact itself" in caplog.text


def test_every_broken_row_is_reported_with_its_reason(tmp_path: Path) -> None:
    without_src = {key: value for key, value in _ROW.items() if key != "src"}
    broken = [
        without_src,
        {**_ROW, "alt": ""},
        {**_ROW, "loc_ans": 1998},
        {**_ROW, "subject": "turkhan"},
        {**_ROW, "answers": []},
        {**_ROW, "portability": {"Reasoning": "none"}},
        {**_ROW, "knowedit_portability": {"Reasoning": [{"prompt": "Who?"}]}},
        {**_ROW, "locality": {"Relation_Specificity": [{"prompt": "Who?", "ground_truth": 5}]}},
    ]
    file = _write(tmp_path, _ROW, *broken)
    with pytest.raises(DataError) as caught:
        read_zsre(file)
    message = str(caught.value)
    assert f"{file}: 8 of 9 row(s) are broken" in message
    for fault in (
        "row 1: src is missing",
        "row 2: alt is empty",
        "row 3: loc_ans must be text, got int 1998",
        "row 4: subject 'turkhan' is not in prompt",
        "row 5: answers is an empty list",
        "row 6: portability.Reasoning must be a list, got str 'none'",
        "row 7: knowedit_portability.Reasoning[0].ground_truth is missing",
        "row 8: locality.Relation_Specificity[0].ground_truth must be text or lists of texts, got int 5",
    ):
        assert f"zsre.json {fault}" in message
    assert len(read_zsre(file, skip_invalid=True)) == 1


@pytest.mark.parametrize(("split", "rows", "no_ops"), [("train", 997, 21), ("val", 498, 27), ("test", 1037, 29)])
def test_real_files_are_read_without_rejected_rows(shared_data: Path, split: str, rows: int, no_ops: int) -> None:
    file = shared_data / f"zsre_{split}.json"
    records = read_zsre(file)
    assert len(records) == rows
    assert all(record.locality[0].prompt.startswith("nq question: ") for record in records)
    assert all(record.template.count("{}") == 1 for record in records)
    raw = json.loads(file.read_text(encoding="utf-8"))
    unchanged = [record.target_new in row["answers"] for record, row in zip(records, raw, strict=True)]
    assert sum(unchanged) == no_ops


def test_real_test_file_keeps_every_portability_question(shared_data: Path) -> None:
    records = read_zsre(shared_data / "zsre_test.json")
    kinds = Counter(kind for record in records for kind, probes in record.portability.items() for _ in probes)
    assert kinds == {"Reasoning": 1037, "Subject_Aliasing": 2, "Logical_Generalization": 2}
    assert Counter(len(record.locality) for record in records) == {1: 376, 3: 661}
