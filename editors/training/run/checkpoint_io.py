"""`AtomicCheckpointIO`: checkpoints that a full disk, or a kill, cannot leave half-written, and that are read whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from editors.common.archives import RefusedArchive, require_whole_archive
from editors.common.errors import EditorError, one_line
from editors.common.files import replacing

_REMEDY = "Give another checkpoint of the run, in its folder checkpoints/"
_SHOWN = 300
_DEEPEST = 50
# In the folder of a checkpoint that FSDP has written in parts.
_SHARDED = ".metadata"
_UNREADABLE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, ArithmeticError, ImportError,
    AssertionError, MemoryError,
)  # fmt: skip
_KINDS: dict[str, type] = {
    "state_dict": dict, "global_step": int, "epoch": int, "pytorch-lightning_version": str, "loops": dict,
    "callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "hyper_parameters": dict,
}  # fmt: skip
_ALWAYS = ("state_dict", "global_step", "epoch", "pytorch-lightning_version", "loops")
_LATEST_STEP = 2**48


def _on_cpu(storage: Any, _: str) -> Any:
    return storage


class CheckpointWriteError(EditorError):
    """A checkpoint could not be written."""


class CheckpointReadError(EditorError):
    """A file is no checkpoint, or a damaged one."""


def require_checkpoint(path: str | Path | None) -> None:
    """Read a checkpoint's file through, before anything is loaded for it. A folder, as FSDP may write, is not read.

    Raises:
        CheckpointReadError: it is damaged, or no file of `torch.save`.
    """
    if path is None or "://" in str(path) or (Path(path) / _SHARDED).is_file():
        return
    try:
        require_whole_archive(Path(path))
    except RefusedArchive as error:
        raise CheckpointReadError(f"checkpoint {path} {one_line(error)}. {_REMEDY}") from error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and takes its place when all is on disk.

    Lightning's own writer collects the file in memory, writes it to the system's temporary folder, and moves it from
    there. Where that is another disk, moving is copying: a full disk then destroys the only `last.ckpt`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, all or nothing.

        Args:
            checkpoint: model and trainer state.
            path: where to; another file system's URL ("s3://…") is left to Lightning.
            storage_options: not supported.

        Raises:
            CheckpointWriteError: the disk is full, or the folder cannot be written to. The old file is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch hides a failed write behind an error of its own when it closes the archive.
            cause = error if isinstance(error, OSError) else error.__context__ or error
            raise CheckpointWriteError(
                f"checkpoint {path} cannot be written ({cause}); an earlier checkpoint of this name is untouched. Free "
                "some space, or name another trainer.default_root_dir, and go on with --ckpt_path last"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = _on_cpu, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; its tensors and plain values alone, unless `weights_only` is `False`.

        Args:
            path: of the file.
            map_location: as in `torch.load`.
            weights_only: `False` unpickles anything, which runs whatever code the file names.

        Raises:
            CheckpointReadError: it is damaged, would run code, or is no checkpoint of Lightning's.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only)
        require_checkpoint(path)
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only is not False)
        except UnpicklingError as error:
            what = re.search(r"WeightsUnpickler error: ([^\n.]*)", str(error))
            raise CheckpointReadError(
                f"checkpoint {path} holds more than tensors and plain values, and is not unpickled: "
                f"{what[1] if what else one_line(error)[:_SHOWN]}. If you trust it, give --weights_only false"
            ) from error
        except _UNREADABLE as error:
            raise CheckpointReadError(
                f"checkpoint {path} cannot be read: {one_line(error)[:_SHOWN]}. {_REMEDY}"
            ) from error
        if fault := _fault(checkpoint):
            raise CheckpointReadError(f"{path} is no checkpoint of a run: {fault}. {_REMEDY}")
        return checkpoint


def _fault(checkpoint: Any) -> str | None:
    """What in a checkpoint is not as Lightning (2.6) writes it."""
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}, not a mapping"
    for name, kind in _KINDS.items():
        if name in _ALWAYS and name not in checkpoint:
            return f"it lacks {name}"
        if name in checkpoint and not isinstance(checkpoint[name], kind):
            return f"its {name} is a {type(checkpoint[name]).__name__}, not a {kind.__name__}"
    if not 0 <= checkpoint["global_step"] <= _LATEST_STEP:
        return f"its global_step is {str(checkpoint['global_step'])[:40]}"
    named = checkpoint["state_dict"].items()
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in named):
        return "its state_dict does not hold tensors by name"
    return f"it is nested more than {_DEEPEST} deep" if _is_deep(checkpoint) else None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for each in level for item in _items(each)]
    return bool(level)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
