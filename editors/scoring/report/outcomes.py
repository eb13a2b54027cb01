"""From outcomes of probes to the rows of a card."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from editors.scoring.report.card import Example, Means, ReportRow
from editors.scoring.report.cases import ReportCase
from editors.scoring.report.intervals import bootstrapped, case_means
from editors.scoring.report.measures import HEADLINE, Outcome
from editors.scoring.report.rows import in_order, kind_of

_EXAMPLES = 20


def by_row(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of each row, in the order of a card."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        found[outcome.probe.row].append(outcome)
    return {row: found[row] for row in in_order(set(found))}


def means(outcomes: Sequence[Outcome]) -> Means:
    """Means over cases of all measures after the edit."""
    return Means(len(outcomes), _means(outcomes, [outcome.values for outcome in outcomes]))


def _means(outcomes: Sequence[Outcome], values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for name in values[0]:
        own = case_means((outcome.case, each[name]) for outcome, each in zip(outcomes, values, strict=True))
        found[name] = sum(own) / len(own)
    return found


def report_rows(
    cases: Sequence[ReportCase],
    outcomes: Sequence[Outcome],
    placebos: Mapping[str, Sequence[Outcome] | None],
    left_out: Mapping[str, int],
    seed: int,
) -> tuple[ReportRow, ...]:
    """The rows of a card.

    Args:
        cases: all cases.
        outcomes: of their probes.
        placebos: outcomes with edits that should not work, by kind; `None` for a kind that cannot be made.
        left_out: for how many probes of each row there was no room.
        seed: of the intervals, and of the choice of examples.
    """
    floors = {kind: None if found is None else by_row(found) for kind, found in placebos.items()}
    rows = []
    for row, own in by_row(outcomes).items():
        short = {
            kind: means(found[row]) if found is not None and row in found else None for kind, found in floors.items()
        }
        rows.append(_row(row, cases, own, short, left_out.get(row, 0), seed))
    return tuple(rows)


def _row(
    row: str,
    cases: Sequence[ReportCase],
    outcomes: Sequence[Outcome],
    placebos: Mapping[str, Means | None],
    left_out: int,
    seed: int,
) -> ReportRow:
    kind = kind_of(row)
    numbers = {
        name: bootstrapped([(outcome.case, outcome.values[name]) for outcome in outcomes], seed)
        for name in outcomes[0].values
    }
    return ReportRow(
        row=row,
        title=kind.title,
        expects=kind.expects,
        headline=HEADLINE[kind.expects],
        n=len(outcomes),
        cases=len({outcome.case for outcome in outcomes}),
        left_out=left_out,
        after=numbers,
        before=_means(outcomes, [outcome.values_before for outcome in outcomes]),
        placebos=placebos,
        examples=tuple(_example(cases[outcome.case], outcome) for outcome in _chosen(outcomes, seed)),
    )


def _chosen(outcomes: Sequence[Outcome], seed: int) -> list[Outcome]:
    """Some outcomes, half of them good where there are enough of both; the good ones first."""
    shuffled = random.Random(seed).sample(list(outcomes), len(outcomes))
    good = [outcome for outcome in shuffled if outcome.good]
    bad = [outcome for outcome in shuffled if not outcome.good]
    half = _EXAMPLES // 2
    return [*good[: max(half, _EXAMPLES - len(bad))], *bad[: max(half, _EXAMPLES - len(good))]]


def _example(case: ReportCase, outcome: Outcome) -> Example:
    request, probe = case.request, outcome.probe
    expected = outcome.before if probe.expects == "keep" else probe.answer
    edit = f"{request.prompt} → {request.target}"
    return Example(edit, probe.prompt, expected, outcome.before, outcome.after, outcome.good)
