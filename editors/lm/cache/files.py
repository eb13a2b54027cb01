"""Files of tensors by key, mapped into memory: several processes may read and write them, and a crash harms none.

Shape legend: B entries of a file, P parts of an entry.
"""

from __future__ import annotations

import json
import logging
import uuid
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editors.common.autocast import without_autocast
from editors.common.errors import one_line
from editors.common.files import save_tensors
from editors.common.hashing import raw_bytes

_LOG = logging.getLogger(__name__)
# Of the first format entries had no checksums.
_FORMAT = "hyperedit-tensors-2"
_PART = "part "
# What reading a damaged file raises: its header may name any types and shapes.
_DAMAGE = (OSError, SafetensorError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, OverflowError)

Key = tuple[int, ...]
Entry = Mapping[str, Tensor]
"""Tensors by name. All entries of a store have the same names; numbers of rows (the first dimension) differ."""


class TensorFiles:
    """A folder of safetensors files, each written once and whole, under a name that no other process takes.

    Args:
        folder: where; each identity gets a folder of its own in it.
        identity: a hash of all that entries depend on besides their keys.
        limit: most bytes of one identity's files.

    Attributes:
        full: something did not fit.
    """

    def __init__(self, folder: str | Path, identity: str, limit: int) -> None:
        self._folder = Path(folder) / identity[:16]
        self._identity = identity
        self._limit = limit
        self._places: dict[Key, tuple[_OpenFile, int]] = {}
        self._known: set[Path] = set()
        self._damaged: set[Path] = set()
        self.full = False
        self._open_new()

    def get(self, key: Key) -> Entry | None:
        """The tensors of an entry, of the types they had before they were rounded; `None` without one."""
        if key not in self._places:
            return None
        file, number = self._places[key]
        found = file.entry(number)
        if found is None:
            self._say_damaged(file.path)
            del self._places[key]
        return found

    def write(self, entries: Mapping[Key, Entry], types: Mapping[str, torch.dtype]) -> None:
        """Add a file with `entries`; read what other processes have added meanwhile.

        Args:
            entries: as they are to be kept.
            types: of each part, before it was rounded.
        """
        self._open_new()
        new = {key: entry for key, entry in entries.items() if key not in self._places}
        size = sum(part.nbytes for entry in new.values() for part in entry.values())
        used = sum(path.stat().st_size for path in self._known)
        if used + size > self._limit:
            self._say_full()
        elif new:
            plain = json.dumps({name: str(type_).removeprefix("torch.") for name, type_ in types.items()})
            metadata = {"format": _FORMAT, "identity": self._identity, "types": plain}
            checksums = torch.tensor([_checksum(*item, plain) for item in new.items()])
            tensors = {**_joined(new, types), "checksums": checksums}
            save_tensors(tensors, self._folder / f"{uuid.uuid4().hex}.safetensors", metadata)
            self._open_new()

    def _say_damaged(self, path: Path) -> None:
        if path not in self._damaged:
            _LOG.warning("%s is damaged: entries of it are left out, and computed anew.", path)
        self._damaged.add(path)

    def _say_full(self) -> None:
        if not self.full:
            _LOG.warning("The files in %s fill their %d MB; no more are written.", self._folder, self._limit // 10**6)
        self.full = True

    def _open_new(self) -> None:
        """Open the files that are new in the folder."""
        for path in sorted(set(self._folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                file = _OpenFile(path, self._identity)
            except _DAMAGE as error:
                _LOG.warning("%s is left out: %s", path, one_line(error))
            else:
                self._places |= {key: (file, number) for number, key in enumerate(file.keys)}


def _joined(entries: Mapping[Key, Entry], names: Collection[str]) -> dict[str, Tensor]:
    """All entries as the tensors of one file."""
    # On the CPU autocast lets no float16 tensors be joined.
    with without_autocast(torch.device("cpu")):
        return {
            "keys": torch.tensor([number for key in entries for number in key]),
            "key_lengths": torch.tensor([len(key) for key in entries]),
            "rows": torch.tensor([[len(entry[name]) for name in names] for entry in entries.values()]),
            **{_PART + name: torch.cat([entry[name] for entry in entries.values()]) for name in names},
        }


def _checksum(key: Key, entry: Entry, types: str) -> int:
    """Of all that makes an entry: its key, its tensors with their types and shapes, the types that they get back.

    Args:
        key: of the entry.
        entry: as it is kept.
        types: from a file's header.
    """
    number = zlib.crc32(f"{key} {types}".encode())
    for name, part in entry.items():
        number = zlib.crc32(f"{name} {part.dtype} {list(part.shape)}".encode(), number)
        number = zlib.crc32(raw_bytes(part), number)
    return number


class _OpenFile:
    """A file, mapped into memory.

    Args:
        path: where it is.
        identity: what it must have been written for.

    Attributes:
        keys: of its entries.

    Raises:
        ValueError: it was written for another identity, or by a version that wrote no checksums.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, wanted {_FORMAT!r}")
            if metadata.get("identity") != identity:
                raise ValueError("what it holds is of another model")
            keys = file.get_tensor("keys").split(file.get_tensor("key_lengths").tolist())
            rows = file.get_tensor("rows")
            self._checksums: list[int] = file.get_tensor("checksums").tolist()
            self._plain_types = metadata["types"]
            self._types = {name: getattr(torch, type_) for name, type_ in json.loads(metadata["types"]).items()}
            # A slice is read from the mapped file when it is taken; it keeps the mapping open.
            self._parts = {name: file.get_slice(_PART + name) for name in self._types}
        self.keys: list[Key] = [tuple(key.tolist()) for key in keys]
        # `[B + 1, P]` where each entry starts.
        self._starts: list[list[int]] = torch.cat([rows.new_zeros(1, rows.shape[1]), rows.cumsum(0)]).tolist()

    def entry(self, number: int) -> Entry | None:
        """The tensors of an entry, of the types they had before they were rounded; `None` if a byte of it is wrong."""
        try:
            bounds = list(zip(self._parts.items(), self._starts[number], self._starts[number + 1], strict=True))
            if not all(0 <= start <= end <= part.get_shape()[0] for (_, part), start, end in bounds):
                return None
            kept: Entry = {name: part[start:end] for (name, part), start, end in bounds}
            if _checksum(self.keys[number], kept, self._plain_types) != self._checksums[number]:
                return None
        except _DAMAGE:
            return None
        return {name: part.to(self._types[name]) for name, part in kept.items()}
