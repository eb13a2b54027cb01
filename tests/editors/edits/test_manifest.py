"""Tests of `editors.edits.manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from editors.common.errors import ArtifactError, EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import FILE, EditManifest
from tests.tiny_models import random_edit

METADATA = {
    "editor": "mend",
    "base_model": {"name": "tiny", "revision": None, "trust_remote_code": True},
    "base_weights": "0" * 64,
    "requests": [{"prompt": "Who founded Dor?", "target": "Anna"}],
    "created": "2026-01-02T03:04:05+00:00",
}


def an_edit(**changes: Any) -> LowRankEdit:
    edit = random_edit({"layer": (3, 4)})
    edit.metadata = METADATA | changes
    return edit


def test_saved_and_loaded(tmp_path: Path) -> None:
    manifest = EditManifest.of(LowRankEdit.compose([an_edit(), LowRankEdit.compose([an_edit(editor="ke")])]))
    manifest.save(tmp_path)
    assert EditManifest.load(tmp_path) == manifest
    assert [edit["editor"] for edit in manifest.edits] == ["mend", "ke"]
    assert [request.target for request in manifest.requests()] == ["Anna", "Anna"]
    assert manifest.layers == ["layer"]


def test_code_of_the_base_model_is_not_trusted() -> None:
    assert not EditManifest.of(an_edit()).base.trust_remote_code


@pytest.mark.parametrize(
    "metadata",
    [{}, {"parts": [METADATA, {}]}, {"parts": 3}, {"parts": ["x"]}, METADATA | {"base_model": "tiny"}],
    ids=str,
)
def test_edit_of_unknown_origin_is_refused(metadata: dict[str, Any]) -> None:
    edit = an_edit()
    edit.metadata = metadata
    with pytest.raises(EditorError, match="does not say which base model it is for"):
        EditManifest.of(edit)


def test_foreign_facts_are_refused() -> None:
    with pytest.raises(ArtifactError, match="about its base model cannot be read"):
        _ = EditManifest.of(an_edit(base_model={"name": "tiny", "colour": "red"})).base
    for requests in ([{"question": "q"}], 3, [{"prompt": "", "target": ""}]):
        with pytest.raises(ArtifactError, match="about its requests cannot be read"):
            EditManifest.of(an_edit(requests=requests)).requests()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no exported edit"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "format None cannot be read"),
        ('{"format": "hyperedit-edit-manifest-9"}', "format 'hyperedit-edit-manifest-9' cannot be read"),
        ('{"format": "hyperedit-edit-manifest-1", "colour": 1}', "does not have the fields"),
        (
            '{"format": "hyperedit-edit-manifest-1", "base_model": 1, "base_weights": "", "edits": [], "layers": []}',
            "base_model is no dict",
        ),
    ],
)
def test_damaged_manifest_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        EditManifest.load(tmp_path)
