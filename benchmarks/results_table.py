"""Result tables for the documentation, made from a run's `results/metrics.json` or from a report card.

    python -m benchmarks.results_table RUN                          print the table
    python -m benchmarks.results_table RUN --into FILE --block zsre replace a block of a Markdown file
    python -m benchmarks.results_table CARD/report.json             the same for a report card

A block stands between `<!-- results:NAME -->` and `<!-- /results -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editors.common.errors import EditorError
from editors.common.files import save_text
from editors.scoring.names import before_edit, is_after_edit
from editors.scoring.report.card import ReportCard
from editors.scoring.report.measures import NEWLY_SAYS_TARGET, SAYS_TARGET


def read_results(run: Path) -> dict[str, Any]:
    """The results of a run.

    Raises:
        EditorError: the run has none.
    """
    path = run / "results" / "metrics.json"
    if not path.is_file():
        raise EditorError(f"{path} is missing; name the folder of a finished fit, validate or test run")
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def results_table(results: Mapping[str, Any]) -> str:
    """The metrics before and after the edit as a Markdown table, with the facts that make them checkable."""
    metrics = results["metrics"]
    names = sorted(filter(is_after_edit, metrics))
    rows = "\n".join(
        f"| {name} | {_percent(metrics.get(before_edit(name)))} | {_percent(metrics[name])} |" for name in names
    )
    facts = "\n".join(f"- {key}: `{_plain(results[key])}`" for key in results if key not in ("metrics", "edit_sites"))
    return f"| metric | before, % | after, % |\n|---|--:|--:|\n{rows}\n\n{facts}\n"


def card_table(card: ReportCard) -> str:
    """The rows of a report card as a Markdown table, with the facts that make them checkable."""
    lines = ["| asked | n | as it should be, % | 95 % | says the target, % |", "|---|--:|--:|--:|--:|"]
    for row in card.rows:
        number = row.after[row.headline]
        said = row.after[NEWLY_SAYS_TARGET if row.expects == "keep" else SAYS_TARGET].mean
        interval = f"{_percent(number.low)}–{_percent(number.high)}"
        lines.append(f"| {row.title} | {row.n} | {_percent(number.mean)} | {interval} | {_percent(said)} |")
    for name, hurt in card.damage.items():
        lines.append(f"| perplexity of {name}: {hurt.perplexity_before:.2f} → {hurt.perplexity:.2f} | | | | |")
    facts = {
        "method": card.method,
        "base_model": card.model,
        "base_weights": card.base_weights,
        "data": card.data[:16],
        "edits": card.cases,
        "seed": card.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "made": card.created,
    }
    return "\n".join([*lines, "", *(f"- {name}: `{value}`" for name, value in facts.items()), ""])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {str(item)[:16]}" for key, item in value.items())
    return str(value)


def replace_block(text: str, block: str, content: str) -> str:
    """`text` with the content of one results block replaced.

    Raises:
        EditorError: there is no such block.
    """
    pattern = re.compile(rf"(<!-- results:{re.escape(block)} -->\n).*?(<!-- /results -->)", re.DOTALL)
    if not pattern.search(text):
        raise EditorError(f"there is no block <!-- results:{block} --> to fill")
    return pattern.sub(lambda match: f"{match[1]}{content}{match[2]}", text)


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished fit, validate or test run; or a report.json")
    parser.add_argument("--into", type=Path, help="Markdown file to update")
    parser.add_argument("--block", help="name of the block in that file")
    options = parser.parse_args()
    is_card = options.run.suffix == ".json"
    table = card_table(ReportCard.load(options.run)) if is_card else results_table(read_results(options.run))
    if options.into:
        save_text(replace_block(options.into.read_text(encoding="utf-8"), options.block, table), options.into)
    else:
        print(table)  # noqa: T201


if __name__ == "__main__":
    main()
