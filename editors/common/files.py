"""Reading tensors, and writing files so that nothing half-written ever takes the place of a good one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editors.common.errors import ArtifactError


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the texts in its header.

    Args:
        path: the file.
        kind: what it should be ("a memory"), for the message.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # The file is no mapping: it has no other way to name its tensors.
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read as {kind}: {error}") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it over `path` when the block ends well, delete it otherwise.

    Raises:
        ArtifactError: `path` is a folder.
    """
    _require_no_folder(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_file_path(path: str | Path) -> None:
    """Check that a file can be written to `path`, and folders to it made.

    Raises:
        ArtifactError: it is a folder, or lies in something that is none or may not be written to.
    """
    _require_no_folder(path)
    parent = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ArtifactError(f"{path} cannot be written: {parent} is no folder; name another file")
    if not os.access(parent, os.W_OK):
        raise ArtifactError(f"{path} cannot be written: {parent} may not be written to; name another file")


def require_new_file(path: str | Path, *, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """Check that a file can be written to `path` without the loss of another one.

    Args:
        path: the file.
        overwrite: an existing file may be replaced, unless it is an input.
        inputs: files and folders that are read; those that do not exist, and `None`, do not count.

    Raises:
        ArtifactError: it exists and may not be replaced, is an input or lies in one, or cannot be written.
    """
    require_file_path(path)
    path = Path(path)
    if not path.exists():
        return
    for source in (Path(each) for each in inputs if each is not None):
        # The same file, maybe under another name (a link), or one in a folder that is read.
        if source.exists() and (path.samefile(source) or path.resolve().is_relative_to(source.resolve())):
            raise ArtifactError(f"{path} is read here (as {source}), so it is never replaced; name another file")
    if not overwrite:
        raise ArtifactError(f"{path} exists already; name another file, or give --overwrite to replace it")


def _require_no_folder(path: str | Path) -> None:
    if Path(path).is_dir() or str(path).endswith("/"):
        raise ArtifactError(f"{path} is a folder; name a file")


def require_new_folder(folder: str | Path) -> None:
    """Check that something can be exported to `folder`.

    Raises:
        ArtifactError: it holds something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already; name a new folder, or remove it first")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it becomes `folder` when the block ends well, and is deleted otherwise.

    Raises:
        ArtifactError: `folder` holds something already, or another process wrote it during the block.
    """
    folder = Path(folder)
    require_new_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ArtifactError(f"{folder} was written by another process meanwhile; name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's file-mode mask, which `mkstemp` ignores."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_json(value: Any, path: str | Path) -> None:
    """Write JSON, all or nothing."""
    save_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, all or nothing.

    Raises:
        OSError: it cannot be written (the disk is full, say); the library has an error of its own for that.
    """
    # Copies, because the format refuses tensors that share memory (the same input factor of two layers).
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
