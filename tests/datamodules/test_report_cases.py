"""Tests of `datamodules.report_cases`: records as cases of a report card."""

from __future__ import annotations

import pytest

from datamodules.records import EditRecord, Probe
from datamodules.report_cases import report_case, report_cases
from editors.scoring.report.cases import OTHER_RELATION, SAME_QUESTION, ReportCase
from editors.texts.requests import EditRequest

RECORD = EditRecord(
    "Who rules France?",
    "Ann",
    subject="France",
    ground_truth="Bob",
    rephrases=("France is ruled by whom?",),
    locality=(
        Probe("nq question: who sings", "Cy"),
        Probe("Who rules Chad?", "Dee", near=SAME_QUESTION),
        Probe("Where is France?", "here", "Relation_Specificity", near=OTHER_RELATION),
        Probe("Who rules Dor?", "Eve", near=SAME_QUESTION),
    ),
    portability={"Reasoning": (Probe("Who is the child of the ruler of France?", "Flo", "Reasoning"),)},
)


def test_a_case_says_what_its_record_says() -> None:
    assert report_case(RECORD) == ReportCase(
        EditRequest("Who rules France?", "Ann", subject="France"),
        ("France is ruled by whom?",),
        (("nq question: who sings", "Cy"),),
        {
            SAME_QUESTION: (("Who rules Chad?", "Dee"), ("Who rules Dor?", "Eve")),
            OTHER_RELATION: (("Where is France?", "here"),),
        },
        {"Reasoning": (("Who is the child of the ruler of France?", "Flo"),)},
    )


@pytest.mark.parametrize(("count", "chosen"), [(2, [0, 5]), (4, [0, 2, 5, 7]), (99, list(range(10))), (0, [])])
def test_cases_are_spread_over_the_records(count: int, chosen: list[int]) -> None:
    records = [EditRecord(f"Question {number}?", "Ann") for number in range(10)]
    assert [case.request.prompt for case in report_cases(records, count)] == [f"Question {n}?" for n in chosen]
