"""Reader of QAEdit: questions of Natural Questions, TriviaQA and SimpleQA that language models get wrong."""

from __future__ import annotations

from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, Probe, parse_rows


def read_qaedit(path: Path | str, *, skip_invalid: bool = False) -> list[EditRecord]:
    """Read a QAEdit file.

    Fields: `prompt`, `target`, `subject`, `rephrase`, `locality` (a list of `loc` and `loc_ans`). The target is the
    true answer. What the base model says instead is not in the file, so `ground_truth` stays empty.

    - The questions of `locality` are Natural Questions as in the file, without zsRE's "nq question: ".
    - Targets stay as published, with what is left of a page's title ("Storms (album)", "Wilt Chamberlain *").

    Args:
        path: a JSON list or a JSONL file.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, or rows are broken and `skip_invalid` is false.
    """
    return parse_rows(load_rows(path), _parse, path, skip_invalid=skip_invalid)


def _parse(row: Row) -> EditRecord:
    return EditRecord(
        prompt=row.text("prompt"),
        target_new=row.text("target"),
        subject=row.text("subject"),
        rephrases=(row.text("rephrase"),),
        locality=tuple(Probe(part.text("loc"), part.text("loc_ans")) for part in row.parts("locality")),
        source=row.source,
    )
