"""A report card as files: all numbers as JSON, and the page to look at."""

from __future__ import annotations

from pathlib import Path

from editors.common.files import save_text
from editors.scoring.report.card import ReportCard
from editors.scoring.report.page import report_page

JSON, PAGE = "report.json", "report.html"


def save_report(card: ReportCard, folder: Path) -> None:
    """Write `report.json` and `report.html` into a folder; earlier ones are replaced.

    Args:
        card: the report card.
        folder: must exist.
    """
    card.save(folder / JSON)
    save_text(report_page(card), folder / PAGE)
