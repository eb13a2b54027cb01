"""Reader of WikiBigEdit: questions about facts of Wikidata that changed or were added."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.common.errors import DataError
from editors.scoring.report.cases import SAME_QUESTION

_SHOWN_NUMBERS = 10


def read_wikibigedit(
    path: Path | str, *, row_numbers: Collection[int] | None = None, skip_invalid: bool = False
) -> list[EditRecord]:
    """Read a WikiBigEdit file.

    Fields: `prompt`, `target_new`, `subject`, `rephrase_prompt`, `locality_prompt`, `locality_ground_truth`. The target
    is the true answer; the one before is not in the file, so `ground_truth` stays empty.

    The locality question asks for the same relation of another subject, often one with a name much like the edited
    subject's.

    Args:
        path: a JSON list or a JSONL file.
        row_numbers: read only these rows, counted from 0, in the order of the file; None reads every row.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, a selected row is not in it, or rows are broken and `skip_invalid` is false.
    """
    rows = load_rows(path)
    if row_numbers is not None:
        rows = _select(rows, row_numbers, path)
    return parse_rows(rows, _parse, path, skip_invalid=skip_invalid)


def _select(rows: Sequence[Row], row_numbers: Collection[int], path: Path | str) -> list[Row]:
    wanted = frozenset(row_numbers)
    missing = sorted(wanted.difference(range(len(rows))))
    if missing:
        shown = [*map(str, missing[:_SHOWN_NUMBERS]), *(["..."] if len(missing) > _SHOWN_NUMBERS else [])]
        raise DataError(
            f"{path}: {len(missing)} of {len(wanted)} selected row numbers are not in the file ({', '.join(shown)}); "
            f"it has {len(rows)} rows, counted from 0; choose the split that was made for this file"
        )
    return [row for number, row in enumerate(rows) if number in wanted]


def _parse(row: Row) -> EditRecord:
    return EditRecord(
        prompt=row.text("prompt"),
        target_new=row.text("target_new"),
        subject=row.text("subject"),
        rephrases=row.one_or_more("rephrase_prompt"),
        locality=(Probe(row.text("locality_prompt"), row.text("locality_ground_truth"), near=SAME_QUESTION),),
        source=row.source,
    )
