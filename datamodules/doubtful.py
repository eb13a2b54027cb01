"""Data that can be used but teaches the wrong thing: counted and said, with what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from datamodules.near import NearLocality
from datamodules.records import EditRecord, Probe
from editors.texts.conflicts import same_answer, told_conflicts

_LOG = logging.getLogger(__name__)
_SHOWN = 3


def warn_of_doubtful_data(
    splits: Mapping[str, Sequence[EditRecord]],
    pool: Sequence[Probe],
    near: NearLocality | None,
    locality_per_edit: int,
) -> None:
    """Log what is doubtful about the data, a line for each kind and split.

    Args:
        splits: records by split name.
        pool: the locality pool.
        near: the locality texts made of other records, if any are made.
        locality_per_edit: locality texts for each training edit.
    """
    for split, records in splits.items():
        # A record may be in a split more than once, to give it weight; it is one row all the same.
        once = list({id(record): record for record in records}.values())
        for line in (contradictions(once), without_effect(once)):
            if line:
                _LOG.warning("%s: %s", split, line)
    line = without_locality(splits.get("train", ()), pool, near, locality_per_edit)
    if line:
        _LOG.warning("train: %s", line)


def contradictions(records: Sequence[EditRecord]) -> str:
    """What to say of records that ask for different answers to one question; nothing where there are none."""
    told = told_conflicts([record.request() for record in records], "record(s)")
    return told and f"{told}. Each edit is made alone, but they cannot hold together: keep one for each question"


def without_effect(records: Sequence[EditRecord]) -> str:
    """What to say of records whose new answer is the true one; nothing where there are none."""
    same = [record for record in records if record.ground_truth and same_answer(record.target_new, record.ground_truth)]
    if not same:
        return ""
    shown = "; ".join(f"{record.prompt!r} → {record.target_new!r}" for record in same[:_SHOWN])
    return (
        f"{len(same):,} of {len(records):,} record(s) ask for what is already so ({shown}"
        f"{'; …' if len(same) > _SHOWN else ''}): such an edit changes nothing, and metrics count it as one that "
        "succeeded"
    )


def without_locality(
    records: Sequence[EditRecord], pool: Sequence[Probe], near: NearLocality | None, locality_per_edit: int
) -> str:
    """What to say of training records that come without a locality text; nothing where all have one."""
    if not records:
        return ""
    if not locality_per_edit:
        missing, reason = len(records), "data.locality_per_edit is 0"
    elif pool or near is not None:
        return ""
    else:
        missing, reason = sum(not record.locality for record in records), "they have none, and there is no pool"
    if not missing:
        return ""
    return (
        f"{missing:,} of {len(records):,} record(s) are trained without a locality text ({reason}): an editor so "
        "trained learns to change everything. Give data.locality_pool, or data.near_locality"
    )
