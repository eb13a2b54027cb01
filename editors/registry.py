"""The registered editors. Adding one is one folder and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from editors.errors import EditorError


@dataclass(frozen=True)
class EditorEntry:
    """Where an editor's parts are; they are imported when used, so that applying one needs no training library.

    Args:
        network: module of the pure-torch network.
        network_class: its class, built as `network_class(site_widths, config)`.
        config_class: the dataclass of its shape, in the same module.
        module: module of the Lightning module.
        module_class: its class.
        low_rank: whether its edits are weight updates in factors, which can be merged.
    """

    network: str
    network_class: str
    config_class: str
    module: str
    module_class: str
    low_rank: bool = True

    def load_network(self) -> tuple[Any, Any]:
        """The network class and its configuration class (torch and transformers only)."""
        module = import_module(self.network)
        return getattr(module, self.network_class), getattr(module, self.config_class)

    def load_module(self) -> Any:
        """The Lightning module class."""
        return getattr(import_module(self.module), self.module_class)


EDITORS: dict[str, EditorEntry] = {
    "ke": EditorEntry("editors.ke.network", "KENetwork", "KEShape", "editors.ke.module", "KE"),
    "mend": EditorEntry("editors.mend.network", "MENDNetwork", "MENDConfig", "editors.mend.module", "MEND"),
    "serac": EditorEntry(
        "editors.serac.network", "SERACNetwork", "SERACConfig", "editors.serac.module", "SERAC", low_rank=False
    ),
}


def registered_editor(name: str) -> EditorEntry:
    """The entry of an editor.

    Raises:
        EditorError: no editor has this name.
    """
    if name not in EDITORS:
        raise EditorError(f"there is no editor {name!r}; registered are: {', '.join(sorted(EDITORS))}")
    return EDITORS[name]
