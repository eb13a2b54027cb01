"""The registered editors. Adding one is one folder and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from editors.common.errors import EditorError


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
        paper: what to cite: authors, title, venue, address.
    """

    network: str
    network_class: str
    config_class: str
    module: str
    module_class: str
    low_rank: bool = True
    paper: str | None = None

    def load_network(self) -> tuple[Any, Any]:
        """The network class and its configuration class (torch and transformers only)."""
        module = import_module(self.network)
        return getattr(module, self.network_class), getattr(module, self.config_class)

    def load_module(self) -> Any:
        """The Lightning module class."""
        return getattr(import_module(self.module), self.module_class)


EDITORS: dict[str, EditorEntry] = {
    "ke": EditorEntry(
        "editors.methods.ke.network",
        "KENetwork",
        "KEShape",
        "editors.methods.ke.module",
        "KE",
        paper="N. De Cao, W. Aziz, I. Titov: *Editing Factual Knowledge in Language Models*, EMNLP 2021, "
        "https://arxiv.org/abs/2104.08164",
    ),
    "mend": EditorEntry(
        "editors.methods.mend.network",
        "MENDNetwork",
        "MENDConfig",
        "editors.methods.mend.module",
        "MEND",
        paper="E. Mitchell, C. Lin, A. Bosselut, C. Finn, C. D. Manning: *Fast Model Editing at Scale*, ICLR 2022, "
        "https://arxiv.org/abs/2110.11309",
    ),
    "serac": EditorEntry(
        "editors.methods.serac.network",
        "SERACNetwork",
        "SERACConfig",
        "editors.methods.serac.module",
        "SERAC",
        low_rank=False,
        paper="E. Mitchell, C. Lin, A. Bosselut, C. D. Manning, C. Finn: *Memory-Based Model Editing at Scale*, ICML "
        "2022, https://arxiv.org/abs/2206.06520",
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
