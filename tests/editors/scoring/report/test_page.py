"""Tests of `editors.scoring.report.page` and of the table."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from editors.scoring.report.abilities import Ability
from editors.scoring.report.card import Example, ReportCard
from editors.scoring.report.making import make_report
from editors.scoring.report.page import report_page
from editors.scoring.report.table import abilities_table, report_table
from tests.editors.scoring.report.worlds import AnswersEverything, number_cases, number_lm

ATTACK = '<script>alert("x")</script>&'


@pytest.fixture(scope="module")
def card() -> ReportCard:
    texts = {"a.txt": ["33 34 35"], ATTACK: ["36 37"]}
    return make_report(number_lm(), AnswersEverything(), number_cases(2), texts=texts, together=(1, 2))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "rect"):
            assert self.open.pop() == tag


def test_all_that_models_and_users_say_is_escaped(card: ReportCard) -> None:
    example = Example(ATTACK, ATTACK, ATTACK, ATTACK, ATTACK, good=False)
    rows = tuple(replace(row, title=ATTACK, examples=(example,)) for row in card.rows)
    abilities = (Ability(ATTACK, ATTACK, 0.5, 0.25, 8),)
    changed = replace(card, method=ATTACK, model=ATTACK, rows=rows, protocol={ATTACK: ATTACK}, abilities=abilities)
    page = report_page(changed)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_is_whole_and_needs_nothing_from_outside(card: ReportCard) -> None:
    page = report_page(card)
    parser = _Tags()
    parser.feed(page)
    assert not parser.open
    assert {"svg", "details", "style"} <= parser.tags
    assert not {"script", "link", "img", "iframe"} & parser.tags
    assert not re.search(r"https?://|url\(|@import", page)
    assert "prefers-color-scheme" in page
    assert 'name="viewport"' in page
    assert "<p>a.txt: perplexity" in page
    assert "<th>perplexity of a.txt</th>" in page
    assert '<span class="warn">says the target 100.0 %</span>' in page


def test_the_table_has_a_line_for_each_row(card: ReportCard) -> None:
    console = Console(width=200, record=True, file=None, quiet=True)
    table = report_table(card)
    console.print(table)
    assert table.row_count == len(card.rows)


def test_abilities_have_a_table_and_a_part_of_the_page_where_there_are_any(card: ReportCard) -> None:
    assert "General ability" not in report_page(card)
    abilities = (Ability("capitals", "acc", 0.5, 0.25, 8, 0.1637), Ability("prose", "word_perplexity", 28.1, 163.25, 4))
    able = replace(card, abilities=abilities)
    page = report_page(able)
    assert "<td>capitals</td><td>acc</td><td>8</td><td>0.5</td><td>0.25</td><td>0.1637</td>" in page
    assert "<td>prose</td><td>word_perplexity</td><td>4</td><td>28.1</td><td>163.2</td><td>–</td>" in page
    table = abilities_table(able)
    assert table.row_count == 2
    assert list(table.columns[4].cells) == ["0.25", "163.2"]
