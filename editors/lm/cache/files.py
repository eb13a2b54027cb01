"""Files of tensors by key, mapped into memory: several processes may read and write them, and a crash harms none.

Shape legend: B entries of a file, P parts of an entry.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editors.common.autocast import without_autocast
from editors.common.files import save_tensors

_LOG = logging.getLogger(__name__)
_FORMAT = "hyperedit-tensors-1"
_PART = "part "

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
        self.full = False
        self._open_new()

    def get(self, key: Key) -> Entry | None:
        """The tensors of an entry, of the types they had before they were rounded; `None` without one."""
        if key not in self._places:
            return None
        file, number = self._places[key]
        return file.entry(number)

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
            save_tensors(_joined(new, types), self._folder / f"{uuid.uuid4().hex}.safetensors", metadata)
            self._open_new()

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
            except (OSError, SafetensorError, ValueError) as error:
                _LOG.warning("%s is left out: %s", path, error)
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


class _OpenFile:
    """A file, mapped into memory.

    Args:
        path: where it is.
        identity: what it must have been written for.

    Attributes:
        keys: of its entries.

    Raises:
        ValueError: it was written for another identity.
    """

    def __init__(self, path: Path, identity: str) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("identity") != identity:
                raise ValueError("what it holds is of another model")
            keys = file.get_tensor("keys").split(file.get_tensor("key_lengths").tolist())
            rows = file.get_tensor("rows")
            self._types = {name: getattr(torch, type_) for name, type_ in json.loads(metadata["types"]).items()}
            # A slice is read from the mapped file when it is taken; it keeps the mapping open.
            self._parts = {name: file.get_slice(_PART + name) for name in self._types}
        self.keys: list[Key] = [tuple(key.tolist()) for key in keys]
        # `[B + 1, P]` where each entry starts.
        self._starts: list[list[int]] = torch.cat([rows.new_zeros(1, rows.shape[1]), rows.cumsum(0)]).tolist()

    def entry(self, number: int) -> Entry:
        """The tensors of an entry, of the types they had before they were rounded."""
        bounds = zip(self._parts.items(), self._starts[number], self._starts[number + 1], strict=True)
        return {name: part[start:end].to(self._types[name]) for (name, part), start, end in bounds}
