"""`AtomicCheckpointIO`: checkpoints that a full disk, or a kill, cannot leave half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from editors.common.errors import EditorError
from editors.common.files import replacing


class CheckpointWriteError(EditorError):
    """A checkpoint could not be written."""


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
