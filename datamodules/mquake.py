"""Reader of MQuAKE's single edits, asked as questions by PokeMQA."""

from __future__ import annotations

from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, parse_rows


def read_mquake_qa(path: Path | str, *, skip_invalid: bool = False) -> list[EditRecord]:
    """Read a file of MQuAKE question edits.

    Fields: `subject`, `src`, `alt` (the new answer), `rephrases`, `relation_id`. The data set has no locality
    questions and no true answers: `ground_truth` stays empty, and locality must come from a pool.

    Args:
        path: a JSON list or a JSONL file.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, or rows are broken and `skip_invalid` is false.
    """
    return parse_rows(load_rows(path), _parse, path, skip_invalid=skip_invalid)


def _parse(row: Row) -> EditRecord:
    return EditRecord(
        prompt=row.text("src"),
        target_new=row.text("alt"),
        subject=row.text("subject"),
        rephrases=row.texts("rephrases"),
        relation=row.text("relation_id"),
        source=row.source,
    )
