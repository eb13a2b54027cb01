"""What a run may not ask for, which checkpoint it means, and where its parts write."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from editors.common.errors import EditorError, UsageError
from editors.training.run.folder import last_checkpoint, newest_checkpoint, place_in_run

_LOG = logging.getLogger(__name__)

# What Lightning calls them, and its short names for them.
_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
# For `plan`: what a trainer is made with where nothing is trained, whatever the machine.
NO_TRAINING = {
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None, "logger": False,
    "callbacks": None, "enable_checkpointing": False,
}  # fmt: skip


def require_float32_network(precision: str | int | None) -> None:
    """Refuse a precision in which Lightning casts the whole module: the hypernetwork computes in float32 only.

    Raises:
        UsageError: it is one of those.
    """
    if precision is not None and str(precision) not in _PRECISIONS:
        raise UsageError(
            f"trainer.precision {precision!r} would cast the hypernetwork, which must stay in float32; use 32-true, "
            "bf16-mixed or 16-mixed. What sets the type of the frozen weights is model.base_model.dtype."
        )


def require_own_batches(overfit_batches: float) -> None:
    """Refuse Lightning's way of training on few records: it replaces the sampler that forms the batches.

    Raises:
        UsageError: it is asked for.
    """
    if overfit_batches:
        raise UsageError(
            f"trainer.overfit_batches {overfit_batches!r} cannot be used (allowed: 0): episodes need their own "
            "sampler. To train on few records give a small file, or datamodules.Sample with a limit, in data.train; to "
            "shorten an epoch use --trainer.limit_train_batches."
        )


def needs_training(class_path: str, verb: str) -> bool:
    """Whether an editor is trained before it can be used; one that is not has nothing that `fit` or `plan` could do.

    Raises:
        UsageError: `verb` is one of these, and the editor is not trained.
    """
    module, _, name = class_path.rpartition(".")
    trained = bool(getattr(getattr(import_module(module), name), "needs_training", True))
    if not trained and verb in ("fit", "plan"):
        raise UsageError(f"{verb}: {name} needs no training, so there is nothing to train: use test")
    return trained


def find_checkpoint(path: str | None, verb: str, root: str, *, trained: bool) -> str | None:
    """The checkpoint that `--ckpt_path` means.

    Args:
        path: the option's value; "last" is the newest of the runs', "last_if_any" the same or none: for
            schedulers, which give one command for the first start and for all others.
        verb: what is asked for.
        root: where the runs are.
        trained: whether the editor needs training.

    Raises:
        EditorError: there is no such checkpoint.
        UsageError: none is named where only a trained editor makes sense.
    """
    if path is None and trained and verb != "fit":
        raise UsageError(
            f"{verb} needs a trained editor: give --ckpt_path FILE, or --ckpt_path last for the newest run in {root}"
        )
    if path == "last_if_any":
        return _last_if_any(verb, root)
    if path == "last":
        return str(last_checkpoint(root))
    if path is not None and "://" not in path and not Path(path).exists():
        raise EditorError(f"--ckpt_path {path}: there is no such file; a run keeps its own in checkpoints/")
    return path


def _last_if_any(verb: str, root: str) -> str | None:
    """The newest checkpoint; a training starts anew where there is none."""
    if verb != "fit":
        raise UsageError(
            f"--ckpt_path last_if_any is for fit, which can start without a checkpoint; for {verb} give last"
        )
    found = newest_checkpoint(root)
    if found is None:
        _LOG.info("No run in %s has a checkpoint: training starts anew", root)
        return None
    _LOG.info("Training goes on from %s", found)
    return str(found)


def write_into_run(parts: Any, root: str, folder: str) -> None:
    """Let loggers and checkpoint callbacks write into this run's folder.

    Args:
        parts: their configuration, one or a list.
        root: the configured folder of all runs.
        folder: this run's.
    """
    for part in parts if isinstance(parts, list) else [parts]:
        arguments: Any = getattr(part, "init_args", None) or {}
        for key in ("save_dir", "dirpath"):
            if arguments.get(key):
                arguments[key] = place_in_run(str(arguments[key]), root, folder)
