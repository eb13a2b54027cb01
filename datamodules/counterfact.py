"""Reader of CounterFact, in ROME's nested format and in EasyEdit's flat one, and of files of case-id splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.json_files import Row, load_json, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.common.errors import DataError
from editors.scoring.report.cases import SAME_QUESTION
from editors.texts.json_documents import shown

_SHOWN_IDS = 10


def read_counterfact(
    path: Path | str, *, case_ids: Collection[int] | None = None, skip_invalid: bool = False
) -> list[EditRecord]:
    """Read a CounterFact file; each row may be nested (ROME) or flat (EasyEdit).

    Nested: `requested_rewrite` {`prompt` with {}, `subject`, `target_new` {`str`}, `target_true` {`str`},
    `relation_id`}, `paraphrase_prompts`, `neighborhood_prompts`. The neighbours share the true answer of the edited
    fact, so that is their locality answer. ROME's attribute and generation prompts are not edit records and not read.

    Flat: `prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt`,
    `locality_ground_truth`.

    Args:
        path: a JSON list or a JSONL file.
        case_ids: read only the rows with these values of `case_id`, in the order of the file; None reads every row.
        skip_invalid: log and leave broken rows out instead of refusing the file.

    Raises:
        DataError: the file cannot be read, a selected case id is not in it, or rows are broken and `skip_invalid` is
            false.
    """
    rows = load_rows(path)
    if case_ids is not None:
        rows = _select(rows, case_ids, path)
    return parse_rows(rows, _parse, path, skip_invalid=skip_invalid)


def read_split(path: Path | str, name: str) -> list[int]:
    """Read one list of case ids from a file {split name: [case id, ...]}.

    Raises:
        DataError: the file cannot be read, is not an object, or has no such split.
    """
    document = load_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: must hold an object of split names and case ids, got {shown(document)}")
    splits = {key: ids for key, ids in document.items() if _is_id_list(ids)}
    if name not in splits:
        raise DataError(f"{path}: no split named {name!r} with case ids; choose one of: {', '.join(sorted(splits))}")
    return list(splits[name])


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) for item in value)


def _select(rows: Sequence[Row], case_ids: Collection[int], path: Path | str) -> list[Row]:
    """Keep the selected rows, and those whose case id cannot be told: they are reported as broken."""
    wanted = frozenset(case_ids)
    missing = wanted.difference(row.values["case_id"] for row in rows if _has_case_id(row))
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(wanted)} selected case ids are not in the file "
            f"({', '.join(map(str, sorted(missing)[:_SHOWN_IDS]))}{', ...' if len(missing) > _SHOWN_IDS else ''}); "
            "choose the split that was made for this file"
        )
    without_id = "case_id is missing or not a whole number, but rows are selected by it"
    marked = [row if _has_case_id(row) or row.fault else replace(row, fault=without_id) for row in rows]
    return [row for row in marked if row.fault or row.values["case_id"] in wanted]


def _has_case_id(row: Row) -> bool:
    return isinstance(row.values.get("case_id"), int)


def _parse(row: Row) -> EditRecord:
    return _parse_nested(row) if "requested_rewrite" in row.values else _parse_flat(row)


def _parse_nested(row: Row) -> EditRecord:
    rewrite = row.part("requested_rewrite")
    subject = rewrite.text("subject")
    truth = rewrite.part("target_true").text("str")
    return EditRecord(
        prompt=rewrite.text("prompt").replace("{}", subject),
        target_new=rewrite.part("target_new").text("str"),
        subject=subject,
        ground_truth=truth,
        rephrases=row.texts("paraphrase_prompts"),
        locality=tuple(Probe(prompt, truth, near=SAME_QUESTION) for prompt in row.texts("neighborhood_prompts")),
        relation=rewrite.text("relation_id") if "relation_id" in rewrite.values else "",
        source=row.source,
    )


def _parse_flat(row: Row) -> EditRecord:
    return EditRecord(
        prompt=row.text("prompt"),
        target_new=row.text("target_new"),
        subject=row.text("subject"),
        ground_truth=row.text("ground_truth"),
        rephrases=row.one_or_more("rephrase_prompt"),
        locality=(Probe(row.text("locality_prompt"), row.text("locality_ground_truth"), near=SAME_QUESTION),),
        source=row.source,
    )
