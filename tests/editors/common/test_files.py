"""Tests of `editors.common.files`: what may be written where."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.common.errors import ArtifactError
from editors.common.files import require_new_file


def test_a_new_file_is_fine_also_beside_what_is_read(tmp_path: Path) -> None:
    require_new_file(tmp_path / "new", overwrite=False, inputs=(tmp_path, None, tmp_path / "nothing"))


def test_an_existing_file_needs_a_word(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(ArtifactError, match="old exists already; name another file, or give --overwrite"):
        require_new_file(tmp_path / "old", overwrite=False)
    require_new_file(tmp_path / "old", overwrite=True)


@pytest.mark.parametrize("name", ["input", "folder/input", "symbolic", "hard"])
def test_an_input_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "input", tmp_path / "folder" / "input"):
        path.write_text("input")
    (tmp_path / "symbolic").symlink_to(tmp_path / "input")
    (tmp_path / "hard").hardlink_to(tmp_path / "input")
    with pytest.raises(ArtifactError, match="so it is never replaced; name another file"):
        require_new_file(tmp_path / name, overwrite=True, inputs=(tmp_path / "input", tmp_path / "folder"))
