"""Records as cases of a report card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from datamodules.records import EditRecord, Probe
from editors.scoring.report.cases import ReportCase


def report_cases(records: Sequence[EditRecord], count: int) -> list[ReportCase]:
    """Cases of some records, spread evenly over them.

    Args:
        records: all records.
        count: how many cases, at most.
    """
    count = min(count, len(records))
    return [report_case(records[number * len(records) // count]) for number in range(count)]


def report_case(record: EditRecord) -> ReportCase:
    """The case of a record. Locality questions that are near its edit are kept apart from the others."""
    near: dict[str, list[tuple[str, str]]] = defaultdict(list)
    far: list[Probe] = []
    for probe in record.locality:
        if probe.near:
            near[probe.near].append((probe.prompt, probe.answer))
        else:
            far.append(probe)
    return ReportCase(
        record.request(),
        record.rephrases,
        _pairs(far),
        {kind: tuple(pairs) for kind, pairs in near.items()},
        {kind: _pairs(probes) for kind, probes in record.portability.items()},
    )


def _pairs(probes: Sequence[Probe]) -> tuple[tuple[str, str], ...]:
    return tuple((probe.prompt, probe.answer) for probe in probes)
