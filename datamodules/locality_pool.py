"""Reader of pools of unrelated questions: locality for data sets that bring none of their own."""

from __future__ import annotations

from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.records import Probe, parse_rows

# zsRE's own locality prompts are Natural Questions with this in front. Pool questions get the same, so that an editor
# trained on the pool meets prompts of the kind it is tested on, and cannot tell the two sources apart.
_QUESTION = "nq question: {}"


def read_locality_pool(path: Path | str, *, skip_invalid: bool = False) -> list[Probe]:
    """Read a file of questions with their answers, as in Natural Questions.

    Fields: `question`, `answer` (a list; the first is taken).

    Args:
        path: a JSON list or a JSONL file.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, or rows are broken and `skip_invalid` is false.
    """
    return parse_rows(load_rows(path), _parse, path, skip_invalid=skip_invalid)


def _parse(row: Row) -> Probe:
    return Probe(_QUESTION.format(row.text("question")), row.texts("answer")[0], source=row.source)
