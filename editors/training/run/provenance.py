"""The facts that make a number checkable: model, data, seed, versions, command."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning import Trainer

from editors.training.module import Editor

_PACKAGES = ("hyperedit", "torch", "lightning", "transformers", "torchmetrics")


def run_facts(trainer: Trainer, editor: Editor) -> dict[str, Any]:
    """Base model and its weights' hash, data hashes, seed, versions, command line, time."""
    data_hash: dict[str, str] = getattr(getattr(trainer, "datamodule", None), "data_hash", dict)()
    return {
        "base_model": editor.base_model.name,
        "base_weights": editor.base_weights,
        "edit_sites": editor.lm.sites,
        "data": data_hash,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "step": trained_steps(trainer, editor),
        "precision": str(trainer.precision),
        "processes": trainer.world_size,
        "versions": {package: _version(package) for package in _PACKAGES},
        "command": " ".join(sys.argv),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def trained_steps(trainer: Trainer, editor: Editor) -> int:
    """Optimiser steps the editor was trained for, also where it was only restored to be scored."""
    return trainer.global_step or editor.restored_step


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
