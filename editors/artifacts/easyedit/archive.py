"""EasyEdit's archives, read without executing anything in them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from editors.artifacts.easyedit.inert_pickle import PickledTensor, TorchArchive
from editors.common.errors import ArtifactError

# The name of the archive in an exported folder.
ARCHIVE = "archive.pt"
# How the names of some tensor of each method start. Archives of MEND's first code call it "gtn".
_MARKS = {
    "classifier.": "SERAC",
    "replacement.": "SERAC",
    "edit_lrs": "MEND",
    "mend.": "MEND",
    "gtn.": "MEND",
    "editor.": "KE",
    "(": "MALMEN",
}
_REFUSED = {
    "KE": "an archive of KE, which EasyEdit dropped in August 2023; only those of MEND and SERAC can be read",
    "MALMEN": "an archive of MALMEN; only those of MEND and SERAC can be read",
}
_NEEDED = {"MEND": "edit_lrs", "SERAC": "scale"}


def read_archive(path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The method of an EasyEdit archive ("MEND" or "SERAC") and its tensors.

    Raises:
        ArtifactError: it is no archive of EasyEdit, damaged, or of another method.
    """
    archive = TorchArchive(path)
    content = archive.content
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ArtifactError(f"{path} is no archive of EasyEdit: it has no 'model'")
    found = {str(name): value for name, value in model.items() if isinstance(value, PickledTensor)}
    methods = dict.fromkeys(m for mark, m in _MARKS.items() if any(name.startswith(mark) for name in found))
    for method in methods:
        if method in _REFUSED:
            raise ArtifactError(f"{path} is {_REFUSED[method]}")
    if len(methods) != 1:
        raise ArtifactError(
            f"{path} is no archive of MEND or SERAC: it has tensors of {' and '.join(methods) or 'neither'}"
        )
    (method,) = methods
    if _NEEDED[method] not in found:
        raise ArtifactError(f"{path} is no archive of {method}: it has no {_NEEDED[method]!r}")
    archive.require_no_larger(found.values())
    return method, {_renamed(name): archive.tensor(value) for name, value in found.items()}


def _renamed(name: str) -> str:
    return f"mend.{name.removeprefix('gtn.')}" if name.startswith("gtn.") else name
