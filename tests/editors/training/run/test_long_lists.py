"""Tests of `editors.training.run.long_lists`: parsing a list takes time in proportion to its length."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from jsonargparse import ArgumentParser, _typehints

from datamodules.base import RecordSource
from editors.training.run import long_lists
from editors.training.run.long_lists import quick_lists

SOURCES = [{"class_path": "datamodules.ZsRE", "init_args": {"file": f"{number}.json"}} for number in range(9)]


def parsed() -> Any:
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf")
    parser.add_argument("--sources", type=list[RecordSource])
    first = parser.parse_object({"sources": SOURCES})
    return parser.dump(parser.parse_object({"sources": SOURCES}, namespace=first))


def test_what_is_parsed_is_the_same_and_no_list_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parsed()
    assert "8.json" in expected
    copied: list[Any] = []

    def noted(value: Any) -> Any:
        copied.append(value)
        return deepcopy(value)

    with quick_lists():
        monkeypatch.setattr(long_lists, "deepcopy", noted)
        assert parsed() == expected
    assert copied
    assert not [value for value in copied if isinstance(value, list) and len(value) == len(SOURCES)]


def test_the_library_is_left_as_it_was() -> None:
    with quick_lists(), quick_lists():
        assert _typehints.deepcopy is not deepcopy
    assert _typehints.deepcopy is deepcopy
