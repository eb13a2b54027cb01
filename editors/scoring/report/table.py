"""A report card as tables for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from editors.scoring.report.card import ReportCard
from editors.scoring.report.measures import EMPTY, NEWLY_SAYS_TARGET, SAYS_TARGET


def report_table(card: ReportCard) -> Table:
    """One line for each row: what it asks, how often it goes well, how often the target is said; in per cent."""
    table = Table(title=Text(f"Report card: {card.method}, {card.cases} edit(s)"))
    table.add_column("asked")
    table.add_column("should")
    for heading in ("n", "before", "after", "95 %", "says target", "says nothing"):
        table.add_column(heading, justify="right")
    last = None
    for row in card.rows:
        if row.expects != last:
            table.add_section()
            last = row.expects
        said = row.after[NEWLY_SAYS_TARGET if row.expects == "keep" else SAYS_TARGET].mean
        number, empty = row.after[row.headline], (row.before[EMPTY], row.after[EMPTY].mean)
        before = "" if row.expects == "keep" else f"{100 * row.before[row.headline]:.1f}"
        table.add_row(
            Text(row.title),
            {"target": "say the target", "keep": "stay", "answer": "follow"}[row.expects],
            str(row.n),
            before,
            f"{100 * number.mean:.1f}",
            f"{100 * number.low:.1f}–{100 * number.high:.1f}",
            Text(f"{100 * said:.1f}", style="red" if row.expects == "keep" and said else ""),
            " → ".join(f"{100 * share:.0f}" for share in empty),
        )
    return table


def abilities_table(card: ReportCard) -> Table:
    """One line for each metric of each task, before and after the first edit."""
    table = Table(title=Text("General ability: lm-evaluation-harness, first edit"))
    table.add_column("task")
    table.add_column("metric")
    for heading in ("n", "before", "after", "± (standard error)"):
        table.add_column(heading, justify="right")
    for each in card.abilities:
        error = "" if each.error is None else f"{each.error:.4f}"
        table.add_row(Text(each.task), Text(each.metric), str(each.n), f"{each.before:.4g}", f"{each.after:.4g}", error)
    return table
