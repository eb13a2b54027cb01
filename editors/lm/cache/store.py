"""`TensorStore`: what the frozen model computes on a text, kept for the next time the text comes."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from editors.base_models.loading import weights_hash
from editors.common.autocast import autocast_dtype
from editors.common.errors import EditorError
from editors.lm.cache.files import Entry, Key, TensorFiles

# A file is written when so many bytes have come together: few files, and little that a crash could lose.
_FILE_BYTES = 32_000_000
_BYTES = 1_000_000


@dataclass(frozen=True)
class PrefixCache:
    """Where that is kept which the frozen model computes on a text, so that it is computed once and not in every epoch.

    There are up to three kinds: hidden states of the frozen prefix, hidden states of the unedited model after the last
    block (at the answers of locality texts), and the factors that edits are made from. Of an encoder-decoder model only
    the first is kept.

    A text's states differ in the last digit with the texts it was read with. So with a cache a resumed run is equal to
    one that nothing cut off to rounding, and not bit for bit.

    Args:
        megabytes: most that is kept of each kind, in memory or in `folder`; what came first stays.
        folder: keep it in files here, mapped into memory, for later runs and other processes too; `None` for memory.
        dtype: "model" keeps numbers as they are; "bfloat16" halves those of a float32 model and rounds them.
        factors: keep factors too. They take far more room than the rest.
    """

    megabytes: int = 256
    folder: str | None = None
    dtype: Literal["model", "bfloat16"] = "model"
    factors: bool = False

    def __post_init__(self) -> None:
        if self.megabytes < 1:
            raise EditorError(
                f"prefix_cache.megabytes must be at least 1, got {self.megabytes}; prefix_cache: null switches it off"
            )


class TensorStore:
    """Entries of one kind by key.

    An entry is found by its whole key, in a place that only this model and kind share, and only if it was computed on
    the same kind of device and with the same autocast: it is right, or it is not found.

    Args:
        settings: where to keep entries, and how many.
        model: the frozen base model.
        facts: all that entries depend on besides their keys: `model_facts`, and those of the kind.

    Attributes:
        hits: how many keys have been found.
        misses: how many have not.
    """

    def __init__(self, settings: PrefixCache, model: PreTrainedModel, facts: Mapping[str, Any]) -> None:
        self._model = model
        self._rounds = settings.dtype == "bfloat16"
        self._entries: dict[Key, Entry] = {}
        # Of each entry, before it was rounded: with autocast they are others than without.
        self._types: dict[Key, dict[str, torch.dtype]] = {}
        self._bytes = 0
        self._limit = settings.megabytes * _BYTES
        self._files: TensorFiles | None = None
        if settings.folder is not None:
            own = json.dumps({**facts, "kept_as": settings.dtype}, sort_keys=True, default=str)
            self._files = TensorFiles(settings.folder, hashlib.sha256(own.encode()).hexdigest(), self._limit)
        self.hits = self.misses = 0

    def get(self, key: Key) -> Entry | None:
        """The tensors of a key, on the CPU; `None` if they are not known."""
        key = self._where_computed(key)
        found = self._entries.get(key)
        if found is not None:
            found = {name: part.to(self._types[key][name]) for name, part in found.items()}
        elif self._files is not None:
            found = self._files.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: Key, entry: Entry) -> None:
        """Keep the tensors of a key, if there is room."""
        key = self._where_computed(key)
        size = sum(part.numel() * self._kept_as(part).itemsize for part in entry.values())
        full = self._bytes + size > self._limit if self._files is None else self._files.full
        if full or key in self._entries:
            return
        # Copies, not views that would hold the whole batch.
        self._entries[key] = {name: part.to("cpu", self._kept_as(part), copy=True) for name, part in entry.items()}
        self._types[key] = {name: part.dtype for name, part in entry.items()}
        self._bytes += size
        if self._files is not None and self._bytes >= _FILE_BYTES:
            self.flush()

    def complete(
        self, keys: Sequence[Key], device: torch.device, compute: Callable[[list[int]], Iterable[tuple[int, Entry]]]
    ) -> list[Entry]:
        """The entries of all keys; those that are missing are computed, once for each key, and kept.

        Args:
            keys: what is wanted.
            device: where the tensors are wanted.
            compute: from the numbers of missing keys to these numbers, in any order, with their entries.
        """
        looked_up = {key: self.get(key) for key in dict.fromkeys(keys)}
        found = {key: _moved(entry, device) for key, entry in looked_up.items() if entry is not None}
        missing = {key: number for number, key in enumerate(keys) if key not in found}
        for number, entry in compute(list(missing.values())) if missing else ():
            found[keys[number]] = entry
            self.put(keys[number], entry)
        return [found[key] for key in keys]

    def flush(self) -> None:
        """Write what has come together to a file, where there is a folder."""
        if self._files is None:
            return
        together: dict[str, list[Key]] = {}
        for key, types in self._types.items():
            together.setdefault(str(types), []).append(key)
        for keys in together.values():
            self._files.write({key: self._entries[key] for key in keys}, self._types[keys[0]])
        self._entries, self._types, self._bytes = {}, {}, 0

    def _kept_as(self, part: Tensor) -> torch.dtype:
        """Tables are rounded; of single numbers (a loss) there is nothing to save."""
        return torch.bfloat16 if self._rounds and part.is_floating_point() and part.dim() > 1 else part.dtype

    def _where_computed(self, key: Key) -> Key:
        """The key, with the kind of device and the type that autocast computes in."""
        device = self._model.device
        return (*key, zlib.crc32(f"{device.type} {autocast_dtype(device)}".encode()))


def _moved(entry: Entry, device: torch.device) -> Entry:
    return {name: part.to(device, non_blocking=True) for name, part in entry.items()}


def model_facts(model: PreTrainedModel) -> dict[str, Any]:
    """What everything depends on that a model computes, besides the text."""
    return {
        "weights": weights_hash(model),
        "config": {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"},
        "attention": getattr(model.config, "_attn_implementation", None),
        "computed_as": str(model.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
