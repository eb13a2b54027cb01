"""Benchmarks set logger levels for the whole process; their tests must leave them as they were."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def logger_levels_survive() -> Iterator[None]:
    """Put the levels that `benchmarks.setting.quieten` changes back when the last benchmark test is done."""
    levels = {name: logging.getLogger(name).level for name in ("lightning", "datamodules", "transformers")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
