"""Where the parity tests find the numbers recorded from reference implementations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_PROJECT = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded numbers: `golden` in HYPEREDIT_SHARED, or in `../shared` beside the project."""
    folder = Path(os.environ.get("HYPEREDIT_SHARED", _BESIDE_PROJECT)) / "golden"
    if not folder.is_dir():
        pytest.skip(f"no recorded numbers at {folder}; set HYPEREDIT_SHARED to the folder that holds golden/")
    return folder
