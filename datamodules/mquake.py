"""Reader of MQuAKE: its multi-hop cases as published, and its single edits asked as questions by PokeMQA."""

from __future__ import annotations

from pathlib import Path

from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.common.errors import DataError

_REWRITES = "requested_rewrite"
_MULTI_HOP = "Multi_Hop"


def read_mquake_qa(path: Path | str, *, skip_invalid: bool = False) -> list[EditRecord]:
    """Read a file of MQuAKE; each row may be a case of several edits (MQuAKE) or one edit (PokeMQA).

    A case: `requested_rewrite` (a list of {`prompt` with {}, `subject`, `target_new` {`str`}, optional `target_true`
    {`str`}, `question`, `relation_id`}), optional `questions` with `new_answer`. Each of its edits is a record, whose
    prompt is the question, and whose paraphrase is the filled prompt. The multi-hop questions follow from all edits of
    the case together, so only of a case of one edit they are its portability.

    One edit: `subject`, `src`, `alt` (the new answer), `rephrases`, `relation_id`; it has no true answer, so
    `ground_truth` stays empty.

    Neither has locality questions: locality must come from a pool.

    Args:
        path: a JSON list or a JSONL file.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, or rows are broken and `skip_invalid` is false.
    """
    cases = parse_rows(load_rows(path), _parse, path, skip_invalid=skip_invalid)
    return [record for records in cases for record in records]


def _parse(row: Row) -> list[EditRecord]:
    if _REWRITES in row.values:
        return _parse_case(row)
    return [
        EditRecord(
            prompt=row.text("src"),
            target_new=row.text("alt"),
            subject=row.text("subject"),
            rephrases=row.texts("rephrases"),
            relation=row.text("relation_id"),
            source=row.source,
        )
    ]


def _parse_case(row: Row) -> list[EditRecord]:
    rewrites = row.parts(_REWRITES)
    if not rewrites:
        raise DataError(f"{_REWRITES} is an empty list; at least one edit is needed")
    follows = _multi_hop(row) if len(rewrites) == 1 else ()
    return [_parse_rewrite(rewrite, follows) for rewrite in rewrites]


def _multi_hop(row: Row) -> tuple[Probe, ...]:
    if "questions" not in row.values:
        return ()
    answer = row.text("new_answer")
    return tuple(Probe(question, answer, _MULTI_HOP) for question in row.texts("questions"))


def _parse_rewrite(rewrite: Row, follows: tuple[Probe, ...]) -> EditRecord:
    question, cloze = rewrite.wordings("question"), rewrite.text("prompt")
    return EditRecord(
        prompt=question[0] if question else cloze,
        target_new=rewrite.answer("target_new"),
        subject=rewrite.text("subject"),
        ground_truth=rewrite.answer("target_true") if "target_true" in rewrite.values else "",
        rephrases=(cloze,) if question else (),
        portability={_MULTI_HOP: follows} if follows else {},
        relation=rewrite.text("relation_id") if "relation_id" in rewrite.values else "",
        source=rewrite.source,
    )
