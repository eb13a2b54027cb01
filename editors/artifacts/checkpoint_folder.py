"""`CheckpointFolder`: the safetensors files of a Hugging Face checkpoint, read and written a tensor at a time.

Nothing here loads a model, so the checkpoint may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editors.common.errors import ArtifactError
from editors.common.hashing import raw_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Of the header of a safetensors file: eight bytes of length, then JSON.
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a tensor are."""

    file: str
    start: int
    end: int


class CheckpointFolder:
    """A folder as `save_pretrained` writes it, with one or several safetensors files.

    Args:
        folder: the folder.

    Raises:
        ArtifactError: it has no safetensors weights, one of its files is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = self._weight_files()
        self._places: dict[str, _Place] = {}
        for file in self.files:
            self._places |= _places(self.folder / file, file)

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        """Whether the folder has safetensors weights."""
        return any((Path(folder) / name).is_file() for name in (_SINGLE, _INDEX))

    def _weight_files(self) -> list[str]:
        # Where a folder has both, transformers loads the single file: an edit of the others would have no effect.
        if (self.folder / _SINGLE).is_file():
            return [_SINGLE]
        index = self.folder / _INDEX
        if not index.is_file():
            raise ArtifactError(f"{self.folder} holds no {_SINGLE} and no {_INDEX}")
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ArtifactError(f"{index} is damaged: {error}") from error
        for file in files:
            if not isinstance(file, str) or Path(file).name != file:
                raise ArtifactError(f"{index} names {file!r}, which is no file of this folder")
        return files

    def key(self, parameter: str, prefix: str) -> str:
        """The name that the checkpoint gives to a parameter of the model.

        Args:
            parameter: its name in the model.
            prefix: name of the model's inner part ("transformer"), which some checkpoints leave out.

        Raises:
            ArtifactError: the checkpoint has no such tensor.
        """
        found = self._find(parameter, prefix)
        if found is not None:
            return found
        raise ArtifactError(
            f"the checkpoint has no tensor {parameter!r}: it is of another model, or the model's class renames or "
            "fuses tensors when it loads. Export a LoRA adapter instead"
        )

    def _find(self, parameter: str, prefix: str) -> str | None:
        names = (parameter, parameter.removeprefix(f"{prefix}."))
        return next((name for name in names if name in self._places), None)

    def tensor(self, key: str) -> Tensor:
        """One tensor, in the type it is stored in."""
        with safe_open(self.folder / self._places[key].file, framework="pt") as file:
            # A copy: the tensor is a view of the file, and would follow what is written there.
            return file.get_tensor(key).clone()

    def write(self, key: str, values: Tensor) -> None:
        """Put other values into the place of a tensor, in the file itself; nothing else of the file changes.

        Raises:
            ArtifactError: they are of another shape or type than the tensor there.
        """
        place = self._places[key]
        old = self.tensor(key)
        if values.shape != old.shape or values.dtype != old.dtype:
            raise ArtifactError(
                f"{key!r} of {self.folder} is {old.dtype} {[*old.shape]}, but {values.dtype} {[*values.shape]} is to "
                "be written there"
            )
        with (self.folder / place.file).open("r+b") as file:
            file.seek(place.start)
            file.write(raw_bytes(values))
            file.flush()
            os.fsync(file.fileno())

    def weights_hash(self, skeleton: PreTrainedModel, dtype: torch.dtype) -> str:
        """`base_model.weights_hash` in bfloat16 of the model that this checkpoint holds, without loading it.

        Args:
            skeleton: the model without its weights (`load_skeleton`); it says which parameters there are.
            dtype: what the model was loaded in when its hash was taken: float16 loses digits before the hash is taken.

        Raises:
            ArtifactError: a parameter is not in the checkpoint.
        """
        # As transformers has it until it sees the weights: only they tell whether T5 1.1 has a head of its own.
        skeleton.tie_weights()
        digest = hashlib.sha256()
        for name in sorted(self._parameters(skeleton)):
            values = self.tensor(self.key(name, skeleton.base_model_prefix))
            if values.is_floating_point():
                values = values.to(_loaded_dtype(skeleton, name, dtype)).to(torch.bfloat16)
            digest.update(name.encode())
            digest.update(raw_bytes(values))
        return digest.hexdigest()

    def _parameters(self, skeleton: PreTrainedModel) -> Iterator[str]:
        """Names of the parameters of the model once loaded.

        Of several that share one tensor it is the first. But one that the checkpoint holds with other values becomes a
        parameter of its own, whatever the configuration says (the head of T5 1.1).
        """
        first: dict[int, str] = {}
        for name, parameter in skeleton.named_parameters(remove_duplicate=False):
            owner = first.setdefault(id(parameter), name)
            if name == owner or self._differ(owner, name, skeleton.base_model_prefix):
                yield name

    def _differ(self, one: str, other: str, prefix: str) -> bool:
        """Whether the checkpoint has both parameters, with different values."""
        keys = [self._find(name, prefix) for name in (one, other)]
        tensors = [self.tensor(key) for key in keys if key is not None]
        return len(tensors) == len(keys) and not torch.equal(*tensors)


def _loaded_dtype(skeleton: PreTrainedModel, name: str, dtype: torch.dtype) -> torch.dtype:
    """What transformers loads a parameter in: some architectures keep some layers in float32 (T5's `wo`)."""
    kept = list(getattr(skeleton, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept += list(getattr(skeleton, "_keep_in_fp32_modules", None) or ())
    return torch.float32 if any(module in name.split(".") for module in kept) else dtype


def _places(path: Path, file: str) -> dict[str, _Place]:
    """Where each tensor's bytes are in a safetensors file; the library checks that they are where they may be."""
    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header: Mapping[str, Any] = json.loads(stream.read(min(length, _LONGEST_HEADER)))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from error
    first = _LENGTH_BYTES + length
    return {
        key: _Place(file, first + entry["data_offsets"][0], first + entry["data_offsets"][1])
        for key, entry in header.items()
        if key != "__metadata__"
    }
