"""`config.json` of an artifact: what it says about an editor, checked before anything is made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from editors.base_models.loading import BaseModelConfig
from editors.common.errors import ArtifactError
from editors.common.hashing import file_hash
from editors.common.plain import read_json, require_fields
from editors.making.registry import registered_method

FORMAT = "hyperedit-editor-1"
CONFIG = "config.json"
# Where something is, which may move, and who is trusted: no part of what an editor computes.
_PLACES = ("name", "revision", "trust_remote_code")
# More layers than any model has, the experts of all its blocks included.
_MOST_SITES = 50_000
_WIDEST = 2**24
_LONGEST_SITE = 500


@dataclass
class ArtifactConfig:
    """What `config.json` says about a trained editor.

    Args:
        editor: registered name of the editor.
        editor_config: shape of its network.
        base_model: how the base model was named and loaded (fields of `BaseModelConfig`).
        architecture: class of the base model.
        base_weights: `weights_hash` of the base model cast to bfloat16, so that float32 and bfloat16 both fit.
        site_widths: `[d_in, d_out]` of each edited layer, in order.
        results: metrics with protocol, data hashes, seed and versions.
        hashes: SHA-256 of each file beside this one but the card, and of what this one says that an editor computes
            with; empty where an earlier version wrote it.
        format: format and version of this folder.
    """

    editor: str
    editor_config: dict[str, Any]
    base_model: dict[str, Any]
    architecture: str
    base_weights: str
    site_widths: dict[str, list[int]]
    results: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT


def read_config(folder: Path) -> ArtifactConfig:
    """Read and check `config.json`.

    Raises:
        ArtifactError: it is missing, damaged, of another format, or says what no editor could be.
        EditorError: there is no such editor.
    """
    path = folder / CONFIG
    try:
        values = read_json(path)
    except OSError as error:
        raise ArtifactError(f"{folder} is no exported editor: {error}") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{path}: format {str(found)[:80]!r} cannot be read, wanted {FORMAT!r}; name the artifact/ folder of a run"
        )
    try:
        require_fields(ArtifactConfig, values, CONFIG)
        config = ArtifactConfig(**values)
        require_fields(BaseModelConfig, config.base_model, f"{CONFIG}: base_model")
        _require_widths(config.site_widths)
    except ArtifactError as error:
        raise ArtifactError(f"{path} does not have the fields of {FORMAT}: {error}. Export the editor again.") from None
    return config


def _require_widths(site_widths: Mapping[str, list[int]]) -> None:
    if not 1 <= len(site_widths) <= _MOST_SITES:
        raise ArtifactError(f"site_widths must name 1 to {_MOST_SITES} layers, got {len(site_widths)}")
    for site, widths in site_widths.items():
        if len(site) > _LONGEST_SITE:
            raise ArtifactError(f"site_widths names a layer with {len(site)} letters (most: {_LONGEST_SITE})")
        if len(widths) != 2 or not all(1 <= width <= _WIDEST for width in widths):
            raise ArtifactError(f"site_widths of {site!r} must be two numbers from 1 to {_WIDEST}, got {widths}"[:300])


def network_config(config: ArtifactConfig) -> Any:
    """The configuration of the editor's network.

    Raises:
        ArtifactError: a field is missing, unknown, of another kind or out of range.
        EditorError: there is no such editor.
    """
    _, kind = registered_method(config.editor).load_network()
    require_fields(kind, config.editor_config, "editor_config")
    return kind(**config.editor_config)


def with_hashes(folder: Path, config: ArtifactConfig) -> dict[str, Any]:
    """What `config.json` is to say, with the hashes of the files that lie in the folder already."""
    return {**asdict(config), "hashes": {CONFIG: _own_hash(config), **_file_hashes(folder)}}


def require_unchanged(folder: Path, config: ArtifactConfig) -> None:
    """Check that the files are those that were exported; one that names no hashes is of an earlier version.

    Raises:
        ArtifactError: one is missing, was added, or has other content.
    """
    if not config.hashes:
        return
    found = {CONFIG: _own_hash(config), **_file_hashes(folder)}
    for name, wanted in config.hashes.items():
        if name not in found:
            raise ArtifactError(
                f"{folder / name[:200]} is missing or damaged: there is no such file, and {CONFIG} names it. Copy the "
                "whole artifact, or export it again"
            )
        if found[name] != wanted:
            raise ArtifactError(
                f"{folder / name} is missing or damaged: its content is not what was exported (SHA-256 "
                f"{found[name][:12]}…, {CONFIG} says {wanted[:12]}…). Copy it again, or export the editor again"
            )
    if added := sorted(found.keys() - config.hashes.keys()):
        raise ArtifactError(f"{folder / added[0]} was added after the export; remove it, or export the editor again")


def _file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that an artifact is made of; what else lies in the folder is never read."""
    files = [folder / "model.safetensors", *sorted((folder / "models").rglob("*"))]
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files if path.is_file()}


def _own_hash(config: ArtifactConfig) -> str:
    """SHA-256 of what an editor computes with: not of results, nor of where models are, which may be moved."""
    base = {name: value for name, value in config.base_model.items() if name not in _PLACES}
    # Its texts are names of models, or one of a few words, of which none becomes another by a wrong bit.
    shape = {name: value for name, value in config.editor_config.items() if not isinstance(value, str)}
    facts = [config.editor, config.architecture, config.base_weights, base, shape, config.site_widths]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
