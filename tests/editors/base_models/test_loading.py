"""Tests of `editors.base_models.loading`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from editors.base_models.loading import BaseModelConfig, load_base_model
from editors.common.errors import BaseModelError


def test_a_gguf_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found, and then refused for what it holds."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(BaseModelError, match=r"'~/x\.gguf' cannot be loaded"):
        load_base_model(BaseModelConfig("~/x.gguf"))


@pytest.mark.parametrize("package", ["strange.part", "", "strange.part.more"])
def test_no_package_is_imported_to_find_a_file(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "__init__.py").write_text("")
    (tmp_path / "strange" / "part").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BaseModelError, match=f"Python package '{package}' is not installed"):
        load_base_model(BaseModelConfig(f"package:{package}/model.gguf"))
    assert "strange" not in sys.modules
