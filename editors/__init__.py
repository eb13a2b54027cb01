"""hyperedit: train hypernetwork knowledge editors against frozen language models, and apply them in one shot.

Importing this package, and applying an exported editor, needs neither lightning nor deepspeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editors.edits import LowRankEdit, MergedEdit
    from editors.export.artifact import LoadedEditor, load_editor
    from editors.requests import EditRequest

__all__ = ["EditRequest", "LoadedEditor", "LowRankEdit", "MergedEdit", "load_editor"]

_HOMES = {
    "EditRequest": "editors.requests",
    "LoadedEditor": "editors.export.artifact",
    "LowRankEdit": "editors.edits",
    "MergedEdit": "editors.edits",
    "load_editor": "editors.export.artifact",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
