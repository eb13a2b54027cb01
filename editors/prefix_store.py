"""`PrefixStore`: what the frozen blocks compute on a text, kept for the next time the text comes.

Shape legend: T tokens, d hidden width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.base_model import weights_hash
from editors.errors import EditorError
from editors.prefix_files import PrefixFiles

# A file is written when so many bytes have come together: few files, and little that a crash could lose.
_FILE_BYTES = 32_000_000
_BYTES = 1_000_000


@dataclass(frozen=True)
class PrefixCache:
    """Where hidden states of the frozen prefix are kept, so that a text is read once and not in every epoch.

    A text's states differ in the last digit with the texts it was read with. So with a cache a resumed run is equal to
    one that nothing cut off to rounding, and not bit for bit.

    Args:
        megabytes: most that is kept, in memory or in `folder`; what came first stays.
        folder: keep them in files here, mapped into memory, for later runs and other processes too; `None` for memory.
        dtype: "model" keeps the states as they are; "bfloat16" halves those of a float32 model and rounds them.
    """

    megabytes: int = 256
    folder: str | None = None
    dtype: Literal["model", "bfloat16"] = "model"

    def __post_init__(self) -> None:
        if self.megabytes < 1:
            raise EditorError(
                f"prefix_cache.megabytes must be at least 1, got {self.megabytes}; prefix_cache: null switches it off"
            )


class PrefixStore:
    """Hidden states `[T, d]` by token ids.

    A text is found by all its ids, in a place that only this model, depth, type and kind of device share: an entry is
    right, or it is not found.

    Args:
        settings: where to keep them, and how many.
        model: the frozen base model.
        depth: how many of its blocks have run.
    """

    def __init__(self, settings: PrefixCache, model: PreTrainedModel, depth: int) -> None:
        self._kept_as = torch.bfloat16 if settings.dtype == "bfloat16" else None
        self._computed_as = model.dtype
        self._states: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0
        self._limit = settings.megabytes * _BYTES
        self._files: PrefixFiles | None = None
        if settings.folder is not None:
            self._files = PrefixFiles(settings.folder, _identity(model, depth, settings.dtype), self._limit)
        self.hits = self.misses = 0

    def get(self, ids: tuple[int, ...]) -> Tensor | None:
        """The states `[T, d]` of a text, on the CPU; `None` if they are not known."""
        found = self._states.get(ids)
        if found is None and self._files is not None:
            found = self._files.get(ids)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        return found if self._kept_as is None else found.to(self._computed_as)

    def put(self, ids: tuple[int, ...], states: Tensor) -> None:
        """Keep the states `[T, d]` of a text, if there is room."""
        if ids in self._states:
            return
        # A copy, not a view that would hold the whole batch.
        states = states.to("cpu", self._kept_as or states.dtype, copy=True)
        if self._files is None and self._bytes + states.nbytes > self._limit:
            return
        self._states[ids] = states
        self._bytes += states.nbytes
        if self._files is not None and self._bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has come together to a file, where there is a folder."""
        if self._files is not None and self._states:
            self._files.write(self._states)
            self._states, self._bytes = {}, 0


def _identity(model: PreTrainedModel, depth: int, dtype: str) -> str:
    """A hash of all that states depend on besides the text."""
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    facts = {
        "weights": weights_hash(model),
        "config": config,
        "attention": getattr(model.config, "_attn_implementation", None),
        "depth": depth,
        "kept_as": dtype,
        "computed_as": str(model.dtype),
        "device": model.device.type,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
