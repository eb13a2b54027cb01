"""`EditManifest`: what an exported edit says about itself (base model, edit texts, editor, date), in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import ArtifactError, BaseModelError, EditorError
from editors.common.files import save_json
from editors.edits.low_rank import LowRankEdit
from editors.texts.requests import EditRequest

FORMAT = "hyperedit-edit-manifest-1"
FILE = "hyperedit_manifest.json"


@dataclass
class EditManifest:
    """Where an edit came from and what it fits.

    Args:
        base_model: how the base model was named and loaded (fields of `BaseModelConfig`, so the revision too).
        base_weights: `weights_hash` of the base model cast to bfloat16.
        edits: for each edit in it its `editor`, `requests` (prompt and target) and date (`created`).
        layers: names of the edited layers.
        export: facts about this form of the edit (kind, ranks, errors, hashes of files).
        format: format and version.
    """

    base_model: dict[str, Any]
    base_weights: str
    edits: list[dict[str, Any]]
    layers: list[str]
    export: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    @classmethod
    def of(cls, edit: LowRankEdit) -> EditManifest:
        """The manifest of an edit, or of several composed into one.

        Raises:
            EditorError: the edit does not say which base model it is for, or its parts were made for different ones.
        """
        return cls.of_metadata(edit.metadata, list(edit.updates))

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any], layers: list[str]) -> EditManifest:
        """The manifest of an edit of any kind.

        Args:
            metadata: of the edit.
            layers: names of the edited layers; none for a memory.

        Raises:
            EditorError: as `of`.
        """
        parts = _parts(metadata)
        if not all(isinstance(part.get("base_model"), dict) and "base_weights" in part for part in parts):
            raise EditorError("this edit does not say which base model it is for; export one made by a trained editor")
        models = {part["base_weights"]: part["base_model"] for part in parts}
        if len(models) > 1:
            names = ", ".join(repr(model["name"]) for model in models.values())
            raise EditorError(f"this edit is composed of edits for base models with different weights: {names}")
        ((weights, model),) = models.items()
        edits = [{key: part.get(key) for key in ("editor", "requests", "created")} for part in parts]
        return cls(model, weights, edits, layers)

    @property
    def base(self) -> BaseModelConfig:
        """How to load the base model; never trusting its code, as in `LoadedEditor.base_model`.

        Raises:
            ArtifactError: the manifest says so in words that are unknown.
        """
        try:
            return BaseModelConfig(**{**self.base_model, "trust_remote_code": False})
        except TypeError as error:
            raise ArtifactError(f"what this edit says about its base model cannot be read: {error}") from error

    def require_weights(self, found: str, base: BaseModelConfig) -> None:
        """Check that a base model has the weights that the edit was made for.

        Args:
            found: `weights_hash` of the model cast to bfloat16.
            base: how it was named.

        Raises:
            BaseModelError: it has others.
        """
        if found != self.base_weights:
            raise BaseModelError(
                f"this edit was made for {self.base.name!r} (revision {self.base.revision!r}), but {base.name!r} has "
                "other weights; give exactly that model"
            )

    def requests(self) -> list[EditRequest]:
        """Every request that was edited in.

        Raises:
            ArtifactError: the manifest lists something else.
        """
        try:
            return [EditRequest(**request) for edit in self.edits for request in edit["requests"] or ()]
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"what this edit says about its requests cannot be read: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the manifest into the folder of an export."""
        save_json(asdict(self), folder / FILE)

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the manifest in a folder."""
        (folder / FILE).unlink()

    @classmethod
    def load(cls, folder: Path) -> EditManifest:
        """Read the manifest of an export.

        Raises:
            ArtifactError: it is missing, damaged, or of another format.
        """
        path = folder / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ArtifactError(f"{folder} is no exported edit: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ArtifactError(f"{path}: format {found!r} cannot be read, wanted {FORMAT!r}")
        try:
            manifest = cls(**values)
        except TypeError as error:
            raise ArtifactError(f"{path} does not have the fields of {FORMAT}: {error}") from error
        for name, kind in (("base_model", dict), ("edits", list), ("layers", list), ("export", dict)):
            if not isinstance(getattr(manifest, name), kind):
                raise ArtifactError(f"{path} is damaged: {name} is no {kind.__name__}")
        return manifest


def _parts(metadata: Any) -> list[Mapping[str, Any]]:
    """The metadata of each edit that was composed, however often; an empty one for what is no metadata."""
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("parts", []), list):
        return [{}]
    if "parts" not in metadata:
        return [metadata]
    return [each for part in metadata["parts"] for each in _parts(part)] or [{}]
