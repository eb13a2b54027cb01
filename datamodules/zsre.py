"""Reader of zsRE files in the format of MEND, with the extra fields EasyEdit and KnowEdit added to it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.knowedit import log_left_out, read_locality, read_probes
from datamodules.records import EditRecord, Probe, parse_rows


def read_zsre(path: Path | str, *, skip_invalid: bool = False) -> list[EditRecord]:
    """Read a zsRE file.

    Fields: `subject`, `src`, `alt` (the new answer), `rephrase`, `answers` (the first is the ground truth), `loc` and
    `loc_ans`; optional `portability`, `locality` and `knowedit_portability`.

    - The prompt of `loc` keeps its "nq question: " as in the file, because published numbers were measured with it.
    - EasyEdit's portability question ("New Question") is of KnowEdit's kind "Reasoning": KnowEdit took its Reasoning
      questions from it, so a question that is in both is kept once.
    - An `alt` that equals a correct answer is kept (29 of 1,037 rows of the published test file): the row belongs to
      the benchmark, although its edit changes nothing.
    - KnowEdit probes that cannot be scored are left out, see `datamodules.knowedit.read_locality`.

    Args:
        path: a JSON list or a JSONL file.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, or rows are broken and `skip_invalid` is false.
    """
    left_out: Counter[str] = Counter()
    records = parse_rows(load_rows(path), partial(_parse, left_out=left_out), path, skip_invalid=skip_invalid)
    log_left_out(left_out, path)
    return records


def _parse(row: Row, *, left_out: Counter[str]) -> EditRecord:
    subject = row.text("subject")
    answers = row.texts("answers")
    unrelated = Probe(row.text("loc"), row.text("loc_ans"))
    return EditRecord(
        prompt=row.text("src"),
        target_new=row.text("alt"),
        subject=subject,
        ground_truth=answers[0],
        rephrases=row.one_or_more("rephrase"),
        locality=(unrelated, *read_locality(row, subject, answers, left_out)),
        portability=_portability(row, left_out),
        source=row.source,
    )


def _portability(row: Row, left_out: Counter[str]) -> dict[str, tuple[Probe, ...]]:
    block = row.optional_part("portability")
    kinds: dict[str, tuple[Probe, ...]]
    if "New Question" in block.values:
        kinds = {"Reasoning": (Probe(block.text("New Question"), block.text("New Answer"), "Reasoning"),)}
    else:
        kinds = read_probes(row, "portability", left_out)
    for kind, probes in read_probes(row, "knowedit_portability", left_out).items():
        kinds[kind] = tuple(dict.fromkeys((*kinds.get(kind, ()), *probes)))
    return kinds
