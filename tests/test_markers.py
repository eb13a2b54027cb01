"""Tests of what `tests/conftest.py` does with markers."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.gpu
def test_what_is_marked_gpu_runs_only_where_there_is_one() -> None:
    assert torch.cuda.is_available()
