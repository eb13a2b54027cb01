"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.method_tester", "tests.learned_method_tester")

from tests.tiny_world import tiny_world  # noqa: E402 - after what says how tests are imported

__all__ = ["tiny_world"]  # pytest finds imported fixtures by name

_BESIDE_PROJECT = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real editing data: `data` in HYPEREDIT_SHARED, or in `../shared` beside the project."""
    folder = Path(os.environ.get("HYPEREDIT_SHARED", _BESIDE_PROJECT)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HYPEREDIT_SHARED to the folder that holds data/")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no GPU, so that no option is needed to run the rest."""
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
