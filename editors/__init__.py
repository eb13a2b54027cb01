"""hyperedit: train hypernetwork knowledge editors against frozen language models, and apply them in one shot.

Importing this package, and applying an exported editor, needs neither lightning nor deepspeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editors.artifacts.edit_files import load_edit
    from editors.artifacts.editor import LoadedEditor, load_editor
    from editors.artifacts.lora import save_lora
    from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
    from editors.edits.composing import compose, low_rank
    from editors.edits.low_rank import LowRankEdit, MergedEdit
    from editors.lm.ask import ask
    from editors.texts.requests import EditRequest

# Public names and where they are; each is imported when it is first used: torch and transformers take seconds to load.
_HOMES = {
    "BaseModelConfig": "editors.base_models.loading",
    "EditRequest": "editors.texts.requests",
    "LoadedEditor": "editors.artifacts.editor",
    "LowRankEdit": "editors.edits.low_rank",
    "MergedEdit": "editors.edits.low_rank",
    "ask": "editors.lm.ask",
    "compose": "editors.edits.composing",
    "load_base_model": "editors.base_models.loading",
    "load_edit": "editors.artifacts.edit_files",
    "load_editor": "editors.artifacts.editor",
    "load_tokenizer": "editors.base_models.loading",
    "low_rank": "editors.edits.composing",
    "save_lora": "editors.artifacts.lora",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - they are named once


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
