"""The QAEdit reader, on hand-written rows and on the real file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.leaks import find_pool_leaks
from datamodules.locality_pool import read_locality_pool
from datamodules.qaedit import read_qaedit
from datamodules.records import EditRecord, Probe
from datamodules.sources import QAEdit
from editors.common.errors import DataError

_ROW: dict[str, Any] = {
    "id": 918,
    "source": "TQA",
    "prompt": "Mouldwarp is an old name for which creature?",
    "target": " Mole ",
    "subject": "Mouldwarp",
    "rephrase": "Which creature was once called Mouldwarp?",
    "locality": [{"loc": "who wrote hamlet", "loc_ans": "Shakespeare"}, {"loc": "who sang help", "loc_ans": "Beatles"}],
}


def _write(folder: Path, *rows: Any) -> Path:
    file = folder / "qaedit.json"
    file.write_text(json.dumps(list(rows)))
    return file


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    expected = EditRecord(
        prompt="Mouldwarp is an old name for which creature?",
        target_new="Mole",
        subject="Mouldwarp",
        rephrases=("Which creature was once called Mouldwarp?",),
        locality=(Probe("who wrote hamlet", "Shakespeare"), Probe("who sang help", "Beatles")),
        source="qaedit.json row 0",
    )
    assert read_qaedit(_write(tmp_path, _ROW)) == [expected]
    assert QAEdit("qaedit.json").read(tmp_path, skip_invalid=False) == [expected]


def test_every_broken_row_is_reported_with_its_reason(tmp_path: Path) -> None:
    broken = {
        "prompt is missing": {key: value for key, value in _ROW.items() if key != "prompt"},
        "target must be text, got int 1998": {**_ROW, "target": 1998},
        "target is empty": {**_ROW, "target": " "},
        "subject must be text, got NoneType None": {**_ROW, "subject": None},
        "subject 'mouldwarp' is not in prompt 'Mouldwarp is": {**_ROW, "subject": "mouldwarp"},
        "rephrase must be text, got list ['Which?']": {**_ROW, "rephrase": ["Which?"]},
        "locality is missing": {key: value for key, value in _ROW.items() if key != "locality"},
        "locality must be a list, got dict {}": {**_ROW, "locality": {}},
        "locality[0] must be an object, got str 'who'": {**_ROW, "locality": ["who"]},
        "locality[1].loc_ans is missing": {**_ROW, "locality": [_ROW["locality"][0], {"loc": "who"}]},
        "locality[0].loc is empty": {**_ROW, "locality": [{"loc": "", "loc_ans": "x"}]},
        "target 'half \\ud83d' is no text in Unicode": {**_ROW, "target": "half \ud83d"},
        "locality[0].loc '\\udc00' is no text in Unicode": {**_ROW, "locality": [{"loc": "\udc00", "loc_ans": "x"}]},
        "must be an object, got NoneType None": None,
    }
    file = _write(tmp_path, *broken.values(), _ROW)
    with pytest.raises(DataError) as caught:
        read_qaedit(file)
    message = str(caught.value)
    assert f"{file}: {len(broken)} of {len(broken) + 1} row(s) are broken" in message
    for number, fault in enumerate(broken):
        assert f"\n  qaedit.json row {number}: {fault}" in message
    assert [record.target_new for record in read_qaedit(file, skip_invalid=True)] == ["Mole"]


def test_real_file(shared_data: Path) -> None:
    records = read_qaedit(shared_data / "qaedit_1k.json")
    assert len(records) == 1000
    assert Counter(len(record.locality) for record in records) == {5: 1000}
    assert all("{}" in record.template for record in records)


def test_real_file_asks_what_the_locality_pool_asks(shared_data: Path) -> None:
    pool = read_locality_pool(shared_data / "nq_locality_pool.json")
    leaks = find_pool_leaks(pool, {"test": read_qaedit(shared_data / "qaedit_1k.json")})
    assert Counter(leak.kind for leak in leaks) == {"locality prompt": 270, "edit prompt": 153}
