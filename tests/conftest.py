"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny_world import tiny_world

__all__ = ["tiny_world"]  # pytest finds imported fixtures by name

_BESIDE_PROJECT = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real editing data: `data` in HYPEREDIT_SHARED, or in `../shared` beside the project."""
    folder = Path(os.environ.get("HYPEREDIT_SHARED", _BESIDE_PROJECT)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HYPEREDIT_SHARED to the folder that holds data/")
    return folder
