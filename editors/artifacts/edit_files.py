"""Saved edits of every kind: what a file says it is decides how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from editors.common.errors import ArtifactError
from editors.edits.low_rank import FORMAT as LOW_RANK_FORMAT
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit
from editors.making.registry import registered_methods

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editors.artifacts.editor import LoadedEditor


def saved_format(path: str | Path) -> str | None:
    """The format that a file's header names, such as "hyperedit-low-rank-edit-1"; it may be damaged all the same.

    Returns:
        `None` if the file is missing, is no safetensors file, or names none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            named: str | None = (file.metadata() or {}).get("format")
            return named
    except (OSError, SafetensorError):
        return None


def load_edit(
    path: str | Path, editor: LoadedEditor | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Edit:
    """Read an edit that `Edit.save` has written.

    Args:
        path: the file.
        editor: the editor that made it; needed for an edit memory, which is nothing without its networks.
        tokenizer: of the base model; needed where `editor` is.

    Raises:
        ArtifactError: the file is missing, damaged, or no edit, or needs an editor that is not given.
    """
    found = saved_format(path)
    if found == LOW_RANK_FORMAT or found is None:
        return LowRankEdit.load(path)
    for method in registered_methods().values():
        if found in method.saved_edits:
            if editor is None or tokenizer is None or editor.config.editor != method.name:
                given = "none is given" if editor is None else f"that is a {editor.config.editor} editor"
                raise ArtifactError(
                    f"{path} is an edit of a {method.name} editor, which answers with its own networks: give that "
                    f"editor (load_editor) and the base model's tokenizer; {given}. It has no factors to compose or to "
                    "convert here; `python -m editors inspect` says what is in it"
                )
            edit: Edit = method.load_reader(found)(path, editor.network, tokenizer)
            return edit
    known = [LOW_RANK_FORMAT, *(each for method in registered_methods().values() for each in method.saved_edits)]
    raise ArtifactError(f"{path} is no edit that can be read here: format {found!r}; known are {', '.join(known)}")
