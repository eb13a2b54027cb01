"""The reader of MQuAKE question edits, and of the locality pool they are used with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.locality_pool import read_locality_pool
from datamodules.mquake import read_mquake_qa
from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

_ROW: dict[str, Any] = {
    "subject": "Ford Edge",
    "relation_id": "P176",
    "alt": "Messerschmitt",
    "statement": "The company that produced Ford Edge is Messerschmitt",
    "src": "Which company is Ford Edge produced by?",
    "rephrases": ["Which company produced the Ford Edge?", "Who produced the Ford Edge?"],
}


def _write(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(list(rows)))
    return file


def test_a_question_edit_has_no_truth_and_no_locality(tmp_path: Path) -> None:
    assert read_mquake_qa(_write(tmp_path, _ROW)) == [
        EditRecord(
            prompt="Which company is Ford Edge produced by?",
            target_new="Messerschmitt",
            subject="Ford Edge",
            rephrases=("Which company produced the Ford Edge?", "Who produced the Ford Edge?"),
            relation="P176",
            source="rows.json row 0",
        )
    ]


def test_broken_question_edits_are_reported(tmp_path: Path) -> None:
    file = _write(tmp_path, {**_ROW, "rephrases": "Who?"}, {**_ROW, "rephrases": ["Who?", " "]}, "Ford Edge")
    with pytest.raises(DataError) as caught:
        read_mquake_qa(file)
    message = str(caught.value)
    assert "row 0: rephrases must be a list, got str 'Who?'" in message
    assert "row 1: rephrases[1] is empty" in message
    assert "row 2: must be an object, got str 'Ford Edge'" in message


def test_pool_questions_look_like_zsre_locality(tmp_path: Path) -> None:
    file = _write(tmp_path, {"question": "who sang he ain't heavy", "answer": ["The Hollies", "Neil Diamond"]})
    (probe,) = read_locality_pool(file)
    assert probe == Probe("nq question: who sang he ain't heavy", "The Hollies")
    assert probe.source == "rows.json row 0"
    assert "row 0" not in repr(probe), "the hash of the data would depend on the file's name"


def test_a_pool_question_without_answer_is_broken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0: answer is an empty list"):
        read_locality_pool(_write(tmp_path, {"question": "who", "answer": []}))


def test_real_files(shared_data: Path) -> None:
    records = read_mquake_qa(shared_data / "mquake_qa_edits_train.json")
    assert len(records) == 4325
    assert sum(len(record.rephrases) for record in records) == 12656
    assert len({probe.prompt for probe in read_locality_pool(shared_data / "nq_locality_pool.json")}) == 5908


# --- the original format ---------------------------------------------------------------------------------------------

_EDIT: dict[str, Any] = {
    "prompt": "{} is associated with the sport of",
    "relation_id": "P641",
    "target_new": {"str": "rugby", "id": "Q1"},
    "target_true": {"str": "football", "id": "Q2"},
    "subject": "Tavel Dor",
    "question": "Which sport is Tavel Dor associated with?",
}
_CASE: dict[str, Any] = {
    "case_id": 1,
    "requested_rewrite": [_EDIT],
    "questions": ["Where was the sport of Tavel Dor invented?", "Where does the sport of Tavel Dor come from?"],
    "answer": "Osten",
    "new_answer": "Lume",
    "single_hops": [{"question": "Which sport is Tavel Dor associated with?", "answer": "football"}],
}


def test_a_case_of_one_edit_is_a_record_with_what_follows(tmp_path: Path) -> None:
    assert read_mquake_qa(_write(tmp_path, _CASE)) == [
        EditRecord(
            prompt="Which sport is Tavel Dor associated with?",
            target_new="rugby",
            subject="Tavel Dor",
            ground_truth="football",
            rephrases=("Tavel Dor is associated with the sport of",),
            portability={"Multi_Hop": tuple(Probe(text, "Lume", "Multi_Hop") for text in _CASE["questions"])},
            relation="P641",
            source="rows.json row 0",
        )
    ]


def test_a_case_of_several_edits_is_as_many_records_and_its_questions_follow_from_none(tmp_path: Path) -> None:
    other = {key: value for key, value in _EDIT.items() if key not in ("question", "target_true", "relation_id")}
    first, second = read_mquake_qa(_write(tmp_path, {**_CASE, "requested_rewrite": [_EDIT, other]}))
    assert first.prompt == _EDIT["question"]
    assert (second.prompt, second.rephrases) == ("Tavel Dor is associated with the sport of", ())
    assert (second.ground_truth, second.relation) == ("", "")
    assert not first.portability
    assert not second.portability


def test_broken_cases_are_reported(tmp_path: Path) -> None:
    broken = [
        {**_CASE, "requested_rewrite": []},
        {**_CASE, "requested_rewrite": [{**_EDIT, "target_new": {"id": "Q1"}}]},
        {**_CASE, "new_answer": None},
    ]
    with pytest.raises(DataError) as caught:
        read_mquake_qa(_write(tmp_path, *broken))
    message = str(caught.value)
    assert "row 0: requested_rewrite is an empty list; at least one edit is needed" in message
    assert "row 1: requested_rewrite[0].target_new.str is missing" in message
    assert "row 2: new_answer must be text, got NoneType None" in message
