"""Reader of KnowEdit files, and of the `portability` and `locality` blocks other data sets borrow from KnowEdit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.json_files import Row, load_rows
from datamodules.records import EditRecord, Probe, parse_rows
from editors.common.errors import DataError
from editors.scoring.report.cases import OTHER_RELATION
from editors.texts.json_documents import shown

_LOG = logging.getLogger(__name__)
_OTHER_RELATIONS = "Relation_Specificity"
_NO_ANSWER = "without an answer"
_RESTATES_EDIT = "that ask for the edited fact itself"


def read_knowedit(path: Path | str, *, skip_invalid: bool = False) -> list[EditRecord]:
    """Read a KnowEdit file (wiki_recent, wiki_counterfact, ZsRE, WikiBio).

    Fields: `subject` or `concept`, `prompt` or `text`, `target_new` or `labels`; optional `ground_truth`, `relation`,
    `rephrase_prompt`, `rephrase` and `rephrases` (each one text or a list of them), `portability` and `locality`.
    Answers come as text, lists, or lists of alias lists: the first text is taken. Which probes are left out, and why,
    is told at `read_probes` and `read_locality`.

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
    subject = row.text("subject", "concept")
    truths = _answers(row.values.get("ground_truth"), "ground_truth")
    return EditRecord(
        prompt=row.text("prompt", "text"),
        target_new=row.answer("target_new", "labels"),
        subject=subject,
        ground_truth=truths[0] if truths else "",
        rephrases=row.wordings("rephrase_prompt", "rephrase", "rephrases"),
        locality=read_locality(row, subject, truths, left_out),
        portability=read_probes(row, "portability", left_out),
        relation=row.text("relation") if row.values.get("relation") else "",
        source=row.source,
    )


def read_probes(row: Row, name: str, left_out: Counter[str]) -> dict[str, tuple[Probe, ...]]:
    """Read a `portability` or `locality` block {kind: [{prompt, ground_truth}]}; an absent block has no kinds.

    A probe whose `ground_truth` holds no text at all ("", [] or [[]]: KnowEdit found no label for the answer) cannot
    be scored and is left out; so is a kind that has no probe.

    Args:
        row: the row the block is in.
        name: the field the block is in.
        left_out: counts the probes that are left out, by reason.

    Raises:
        DataError: the block has another structure, or a prompt is blank.
    """
    block = row.optional_part(name)
    kinds = {kind: _probes(block, kind, left_out) for kind in block.values}
    return {kind: probes for kind, probes in kinds.items() if probes}


def read_locality(row: Row, subject: str, truths: Sequence[str], left_out: Counter[str]) -> tuple[Probe, ...]:
    """Read the `locality` block; each probe carries its kind.

    Relation_Specificity asks for *other* relations of the subject. In 15 % of KnowEdit's zsRE rows its answer is the
    truth that is being edited, mostly because it asks for the edited relation ("Who was the father of X?" is edited,
    "The father of X is" must stay), so that a good edit would be marked down. Such a probe is left out. Forgetfulness
    is kept: it asks for a second, older object of the same relation on purpose.

    Args:
        row: the row the block is in.
        subject: the edited subject.
        truths: the answers that are correct before the edit.
        left_out: counts the probes that are left out, by reason.

    Raises:
        DataError: the block has another structure, or a prompt is blank.
    """
    edited = {truth.casefold() for truth in truths}
    kept: list[Probe] = []
    for kind, probes in read_probes(row, "locality", left_out).items():
        for probe in probes:
            if kind == _OTHER_RELATIONS and subject in probe.prompt and probe.answer.casefold() in edited:
                left_out[_RESTATES_EDIT] += 1
            else:
                kept.append(probe)
    return tuple(kept)


def log_left_out(left_out: Counter[str], path: Path | str) -> None:
    """Log how many probes of a file were left out, by reason."""
    for reason, count in left_out.items():
        _LOG.info("%s: left out %d probe(s) %s", path, count, reason)


def _probes(block: Row, kind: str, left_out: Counter[str]) -> tuple[Probe, ...]:
    probes: list[Probe] = []
    for item in block.parts(kind):
        answers = _answers(item.value("ground_truth"), f"{item.prefix}ground_truth")
        if answers:
            near = OTHER_RELATION if kind == _OTHER_RELATIONS else ""
            probes.append(Probe(item.text("prompt"), answers[0], kind, near=near))
        else:
            left_out[_NO_ANSWER] += 1
    return tuple(probes)


def _answers(value: Any, name: str) -> list[str]:
    """All texts of an answer: of a text, a list of texts, or lists of aliases; none where it is absent."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list):
        return [text for item in value for text in _answers(item, name)]
    raise DataError(f"{name} must be text or lists of texts, got {shown(value)}")
