"""The page with the plans is rewritten where plans are, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plan_tables

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_page_has_the_plans_that_it_names() -> None:
    found = plan_tables.plans(PAGE.read_text(encoding="utf-8"))
    names = ("gpt-j-6b", "llama-3.1-8b", "t5-xl", "llama-3.1-70b")
    assert [name for (command, _), name in zip(found, names, strict=True) if name not in command] == []
    assert all("GB on each" in shown for _, shown in found)


def test_only_the_blocks_of_plans_are_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    other = "```bash\npython train.py plan --tokens 3\n```\n\nText.\n\n```text\nkept\n```\n\n"
    plan = "```bash\npython train.py plan --gpus 2\n```\n\n```text\n{}```\n"
    page.write_text(other + plan.format("old\n"))
    monkeypatch.setattr(plan_tables, "planned", lambda command: f"new for {command.split()[-1]}\n")
    plan_tables.main([str(page)])
    assert page.read_text() == other + plan.format("new for 2\n")
