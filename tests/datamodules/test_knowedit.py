"""The KnowEdit reader: its spellings of fields and answers, and the probes it leaves out."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.knowedit import read_knowedit
from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

_ROW: dict[str, Any] = {
    "subject": "Leo Arons",
    "prompt": "The place of death of Leo Arons is",
    "target_new": "Berlin",
    "portability": {
        "Reasoning": [{"prompt": "The continent Leo Arons died in is", "ground_truth": [["Europe", "EU"]]}]
    },
    "locality": {"Relation_Specificity": [{"prompt": "The father of Leo Arons is", "ground_truth": [[], ["Albert"]]}]},
}


def _write(folder: Path, *rows: Any) -> Path:
    file = folder / "knowedit.json"
    file.write_text(json.dumps(list(rows)))
    return file


def test_the_first_alias_is_the_answer_and_the_truth_may_be_absent(tmp_path: Path) -> None:
    assert read_knowedit(_write(tmp_path, _ROW)) == [
        EditRecord(
            prompt="The place of death of Leo Arons is",
            target_new="Berlin",
            subject="Leo Arons",
            locality=(Probe("The father of Leo Arons is", "Albert", "Relation_Specificity"),),
            portability={"Reasoning": (Probe("The continent Leo Arons died in is", "Europe", "Reasoning"),)},
            source="knowedit.json row 0",
        )
    ]


def test_wikibio_names_its_fields_differently(tmp_path: Path) -> None:
    text = "This is a Wikipedia passage about john reynolds."
    (record,) = read_knowedit(
        _write(tmp_path, {"concept": "john reynolds", "text": text, "labels": "He was a doctor."})
    )
    assert (record.subject, record.prompt, record.target_new) == ("john reynolds", text, "He was a doctor.")
    assert (record.locality, record.portability, record.rephrases) == ((), {}, ())


@pytest.mark.parametrize("truth", ["Vienna", ["Vienna", "Wien"], [["Vienna", "Wien"], ["Graz"]]])
def test_ground_truth_and_rephrase_are_read_where_present(tmp_path: Path, truth: Any) -> None:
    (record,) = read_knowedit(_write(tmp_path, {**_ROW, "ground_truth": truth, "rephrase_prompt": "Leo Arons died in"}))
    assert record.ground_truth == "Vienna"
    assert record.rephrases == ("Leo Arons died in",)


def test_probes_that_cannot_be_scored_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restated = {"prompt": "The place Leo Arons died in is", "ground_truth": [["wien"]]}
    older = {"prompt": "The place of death of Leo Arons, which is not Berlin, is", "ground_truth": "Vienna"}
    unanswered = {"prompt": "The award Leo Arons won is", "ground_truth": [[]]}
    row = {
        **_ROW,
        "ground_truth": ["Vienna", "Wien"],
        "locality": {"Relation_Specificity": [restated, unanswered], "Forgetfulness": [older]},
        "portability": {"Reasoning": [unanswered], "Subject_Aliasing": []},
    }
    with caplog.at_level(logging.INFO):
        (record,) = read_knowedit(_write(tmp_path, row))
    assert record.locality == (Probe(older["prompt"], "Vienna", "Forgetfulness"),)
    assert record.portability == {}
    assert "left out 2 probe(s) without an answer" in caplog.text
    assert "left out 1 probe(s) that ask for the edited fact itself" in caplog.text


def test_broken_rows_are_reported(tmp_path: Path) -> None:
    rows = [
        {**_ROW, "subject": "Leo Aarons"},
        {**_ROW, "target_new": None},
        {**_ROW, "ground_truth": 3},
        {**_ROW, "portability": {"Reasoning": [{"prompt": "", "ground_truth": "x"}]}},
        {**_ROW, "locality": []},
    ]
    with pytest.raises(DataError) as caught:
        read_knowedit(_write(tmp_path, *rows))
    message = str(caught.value)
    assert "row 0: subject 'Leo Aarons' is not in prompt" in message
    assert "row 1: target_new must be text, got NoneType None" in message
    assert "row 2: ground_truth must be text or lists of texts, got int 3" in message
    assert "row 3: portability.Reasoning[0].prompt is empty" in message
    assert "row 4: locality must be an object, got list []" in message


def test_real_file(shared_data: Path) -> None:
    records = read_knowedit(shared_data / "knowedit_wiki_recent.json")
    assert len(records) == 570
    assert sum(bool(record.locality) for record in records) == 415
    assert sum(len(record.locality) for record in records) == 1939
    kinds = Counter(kind for record in records for kind, probes in record.portability.items() for _ in probes)
    assert kinds == {"Reasoning": 476, "Logical_Generalization": 223, "Subject_Aliasing": 52}


@pytest.mark.parametrize("name", ["rephrase", "rephrases", "rephrase_prompt"])
@pytest.mark.parametrize("given", ["Norway's capital is", ["Norway's capital is"], None, []])
def test_other_wordings_are_one_text_or_a_list(name: str, given: Any, tmp_path: Path) -> None:
    row = {"subject": "Norway", "prompt": "The capital of {} is", "target_new": {"str": "Cairo"}, name: given}
    (tmp_path / "k.json").write_text(json.dumps([row]))
    (record,) = read_knowedit(tmp_path / "k.json")
    assert (record.prompt, record.target_new) == ("The capital of Norway is", "Cairo")
    assert record.rephrases == (("Norway's capital is",) if given else ())


def test_truths_that_are_no_text_are_refused(tmp_path: Path) -> None:
    row = {"subject": "Norway", "prompt": "Norway's capital", "target_new": "Cairo", "ground_truth": "Os\ud800lo"}
    (tmp_path / "k.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match=r"ground_truth .* is no text in Unicode"):
        read_knowedit(tmp_path / "k.json")
