"""Tests of `load_edit`: what a file says it is decides how it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from editors.artifacts.edit_files import load_edit, saved_format
from editors.artifacts.editor import load_editor
from editors.base_models.loading import load_tokenizer
from editors.common.errors import ArtifactError
from editors.edits.low_rank import LowRankEdit
from tests.tiny_models import random_edit

MEMORY = "hyperedit-memory-1"


def written(path: Path, **header: str) -> Path:
    """A safetensors file that says this of itself."""
    save_file({"x": torch.zeros(1)}, path, header)
    return path


def test_a_low_rank_edit_is_read_without_its_editor(tmp_path: Path) -> None:
    edit = random_edit({"one.layer": (3, 4), "other.layer": (5, 3)}, num_episodes=2)
    edit.save(tmp_path / "edit.safetensors")
    assert saved_format(tmp_path / "edit.safetensors") == "hyperedit-low-rank-edit-1"
    found = load_edit(tmp_path / "edit.safetensors")
    assert isinstance(found, LowRankEdit)
    assert found.metadata == edit.metadata
    for site, update in edit.updates.items():
        assert torch.equal(found.updates[site].u, update.u)
        assert torch.equal(found.updates[site].v, update.v)


def test_an_unknown_format_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "edit.safetensors", format="hyperedit-neurons-7")
    known = f"hyperedit-low-rank-edit-1, {MEMORY}"
    with pytest.raises(ArtifactError, match=rf"no edit that can be read here: format 'hyperedit-neurons-7'.*{known}"):
        load_edit(path)


def test_a_memory_needs_its_editor(artifact: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "memory.safetensors", format=MEMORY)
    with pytest.raises(ArtifactError, match=r"an edit of a serac editor.*\(load_editor\).*; none is given"):
        load_edit(path)
    other = load_editor(artifact)
    with pytest.raises(ArtifactError, match=r"an edit of a serac editor.*; that is a mend editor"):
        load_edit(path, other, load_tokenizer(other.base_model))


@pytest.mark.parametrize("content", [None, b"", b"no tensors"], ids=["missing", "empty", "other"])
def test_what_is_no_edit_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "edit.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert saved_format(path) is None
    with pytest.raises(ArtifactError, match=r"cannot be read as an edit"):
        load_edit(path)


def test_tensors_that_say_nothing_of_themselves_are_no_edit(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not an edit in factors \(format None"):
        load_edit(written(tmp_path / "tensors.safetensors", other="x"))
