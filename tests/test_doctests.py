"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("editors", "datamodules")
# Only modules with examples are imported: some need a library that not every machine has.
FILES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py") if ">>> " in f.read_text("utf-8"))
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    done = doctest.testmod(import_module(name))
    assert done.attempted
    assert not done.failed, "what differs is in the captured output"


def test_examples_are_found() -> None:
    assert {"editors.texts.requests", "datamodules.records"} <= set(MODULES)
