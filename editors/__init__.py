"""hyperedit: train hypernetwork knowledge editors against frozen language models, and apply them in one shot.

Importing this package, and applying an exported editor, needs neither lightning nor deepspeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editors.artifacts.editor import LoadedEditor, load_editor
    from editors.edits.low_rank import LowRankEdit, MergedEdit
    from editors.texts.requests import EditRequest

__all__ = ["EditRequest", "LoadedEditor", "LowRankEdit", "MergedEdit", "load_editor"]

_HOMES = {
    "EditRequest": "editors.texts.requests",
    "LoadedEditor": "editors.artifacts.editor",
    "LowRankEdit": "editors.edits.low_rank",
    "MergedEdit": "editors.edits.low_rank",
    "load_editor": "editors.artifacts.editor",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
