"""Files of hidden states, mapped into memory: several processes may read and write them, and a crash harms none.

Shape legend: T tokens of a text, N tokens of all texts of a file, B its texts, d hidden width.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editors.files import save_tensors

_LOG = logging.getLogger(__name__)
_FORMAT = "hyperedit-prefix-1"


class PrefixFiles:
    """A folder of safetensors files, each written once and whole, under a name that no other process takes.

    Args:
        folder: where; each identity gets a folder of its own in it.
        identity: a hash of all that the states depend on besides a text's ids.
        limit: most bytes of one identity's files.
    """

    def __init__(self, folder: str | Path, identity: str, limit: int) -> None:
        self._folder = Path(folder) / identity[:16]
        self._identity = identity
        self._limit = limit
        self._places: dict[tuple[int, ...], tuple[Any, int]] = {}
        self._known: set[Path] = set()
        self._full = False
        self._open_new()

    def get(self, ids: tuple[int, ...]) -> Tensor | None:
        """The states `[T, d]` of a text, or `None`."""
        if ids not in self._places:
            return None
        states, start = self._places[ids]
        found: Tensor = states[start : start + len(ids)]
        return found

    def write(self, texts: Mapping[tuple[int, ...], Tensor]) -> None:
        """Add a file with the states of `texts`; read what other processes have added meanwhile."""
        self._open_new()
        new = {ids: states for ids, states in texts.items() if ids not in self._places}
        size = sum(states.nbytes for states in new.values())
        used = sum(path.stat().st_size for path in self._known)
        if used + size > self._limit:
            self._say_full()
        elif new:
            tensors = {
                "ids": torch.tensor([token for ids in new for token in ids]),
                "lengths": torch.tensor([len(ids) for ids in new]),
                "states": torch.cat(list(new.values())),
            }
            name = f"{uuid.uuid4().hex}.safetensors"
            save_tensors(tensors, self._folder / name, {"format": _FORMAT, "identity": self._identity})
            self._open_new()

    def _say_full(self) -> None:
        if not self._full:
            _LOG.warning("Hidden states in %s fill their %d MB; no more are kept.", self._folder, self._limit // 10**6)
        self._full = True

    def _open_new(self) -> None:
        """Open the files that are new in the folder."""
        for path in sorted(set(self._folder.glob("*.safetensors")) - self._known):
            self._known.add(path)
            try:
                self._open(path)
            except (OSError, SafetensorError, ValueError) as error:
                _LOG.warning("%s is left out: %s", path, error)

    def _open(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("identity") != self._identity:
                raise ValueError("its hidden states are of another model")
            lengths = file.get_tensor("lengths").tolist()
            texts = file.get_tensor("ids").split(lengths)
            # A slice is read from the mapped file when it is taken; it keeps the mapping open.
            states = file.get_slice("states")
        start = 0
        for text, length in zip(texts, lengths, strict=True):
            self._places[tuple(text.tolist())] = (states, start)
            start += length
