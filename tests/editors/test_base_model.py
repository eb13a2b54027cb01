"""Tests of `editors.base_model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.base_model import BaseModelConfig, load_base_model
from editors.errors import BaseModelError


def test_a_gguf_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, and then refused for what it holds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(BaseModelError, match=r"'~/x\.gguf' cannot be loaded"):
        load_base_model(BaseModelConfig("~/x.gguf"))
