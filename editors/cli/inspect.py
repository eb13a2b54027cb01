"""`inspect`: what an artifact, an edit, an export or an archive is, and what it needs.

What a user asks first comes first: what it is, of which editor, for which base model, which edits. Hashes come last.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from editors.artifacts.easyedit.archive import read_archive
from editors.artifacts.edit_files import saved_format
from editors.artifacts.editor import load_editor
from editors.common.errors import ArtifactError
from editors.edits.low_rank import LowRankEdit
from editors.edits.manifest import FILE, EditManifest
from editors.methods.serac.memory import FORMAT as MEMORY_FORMAT
from editors.methods.serac.memory import EditMemory

_REQUESTS_SHOWN = 10
_APPLYING = "torch, transformers, safetensors"
_EXPORT_NEEDS = {
    "lora": "peft, vLLM or SGLang, and exactly that base model",
    "gguf-lora": "llama.cpp, and exactly that base model as a GGUF file",
    "merged": "transformers only",
}


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("inspect", help="what a file or folder is, what it needs, and its card")
    parser.add_argument("path", help="artifact, saved edit, LoRA adapter, merged model, or archive of EasyEdit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table and the card")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    """Print the facts."""
    path = Path(options.path)
    facts = inspected(path)
    if options.json:
        console.print_json(json.dumps(facts))
        return 0
    table = Table(show_header=False, title=Text(str(path)))
    for name, value in facts.items():
        table.add_row(name, Text(_shown(name, value)))
    console.print(table)
    if (path / "README.md").is_file():
        console.print(Markdown(_without_metadata((path / "README.md").read_text(encoding="utf-8"))))
    return 0


def _shown(name: str, value: Any) -> str:
    if name == "requests":
        lines = [*value[:_REQUESTS_SHOWN], *([f"… {len(value)} in all"] if len(value) > _REQUESTS_SHOWN else [])]
        return "\n".join(lines)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_metadata(card: str) -> str:
    """A card without the block that is meant for the Hub."""
    return card.split("\n---\n", 1)[-1] if card.startswith("---\n") else card


def inspected(path: Path) -> dict[str, Any]:
    """What a file or folder is and needs, in plain values.

    Raises:
        ArtifactError: it is nothing that hyperedit knows, or damaged.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file or folder")
    if path.is_dir():
        if (path / FILE).is_file():
            return _export_facts(path)
        return _archive_facts(path / "archive.pt") if (path / "archive.pt").is_file() else _editor_facts(path)
    # By content, because edits and archives may have any name.
    is_archive = zipfile.is_zipfile(path) or path.suffix == ".pt"
    if is_archive:
        return _archive_facts(path)
    return _memory_facts(path) if saved_format(path) == MEMORY_FORMAT else _edit_facts(path)


def _editor_facts(path: Path) -> dict[str, Any]:
    editor = load_editor(path)
    config = editor.config
    return {
        "kind": "trained editor",
        "editor": config.editor,
        "base model": f"{config.base_model['name']} ({config.architecture})",
        "sites": len(config.site_widths),
        "parameters": sum(parameter.numel() for parameter in editor.network.parameters()),
        "needs": f"{_APPLYING}, and exactly that base model",
        "settings": config.editor_config,
        "edited layers": list(config.site_widths),
        "results": config.results,
        "revision": config.base_model.get("revision"),
        "base weights": config.base_weights,
    }


def _edit_facts(path: Path) -> dict[str, Any]:
    edit = LowRankEdit.load(path)
    ranks = {site: update.u.shape[1] for site, update in edit.updates.items()}
    if edit.num_episodes > 1:
        needs = f"{_APPLYING}, and the base model it was made for"
        return {
            "kind": "saved edit",
            "sites": len(ranks),
            "episodes": edit.num_episodes,
            "needs": needs,
            "ranks": ranks,
        }
    facts = {"episodes": 1, "needs": f"{_APPLYING}, and exactly that base model", "ranks": ranks}
    return _manifest_facts("saved edit", EditManifest.of(edit), facts)


def _memory_facts(path: Path) -> dict[str, Any]:
    memory, metadata = EditMemory.load(path)
    needs = f"{_APPLYING}, the SERAC editor that wrote it, and its base model"
    facts = {"entries": len(memory), "needs": needs, "embedding width": memory.keys.shape[1]}
    return _manifest_facts("edit memory of SERAC", EditManifest.of_metadata(metadata, []), facts)


def _export_facts(path: Path) -> dict[str, Any]:
    manifest = EditManifest.load(path)
    kind = str(manifest.export.get("kind"))
    needs = _EXPORT_NEEDS.get(kind, "unknown")
    return _manifest_facts(f"edit as {kind}", manifest, {"needs": needs, "facts": manifest.export})


def _manifest_facts(kind: str, manifest: EditManifest, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an edit is, then what is particular to its form, then what only programs compare.

    Args:
        kind: of thing, in words.
        manifest: what it says about itself.
        facts: about its form.
    """
    return {
        "kind": kind,
        "editor": ", ".join(dict.fromkeys(str(edit.get("editor")) for edit in manifest.edits)),
        "base model": manifest.base_model.get("name"),
        "sites": len(manifest.layers),
        "requests": [f"{request.prompt} → {request.target}" for request in manifest.requests()],
        **facts,
        "edits": manifest.edits,
        "edited layers": manifest.layers,
        "revision": manifest.base_model.get("revision"),
        "base weights": manifest.base_weights,
    }


def _archive_facts(path: Path) -> dict[str, Any]:
    method, tensors = read_archive(path)
    layers = {"edited layers": len(tensors["edit_lrs"])} if method == "MEND" else {}
    return {
        "kind": f"{method} archive of EasyEdit",
        **layers,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "needs": "its YAML file and its base model; `python -m editors import` makes an artifact of it",
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
