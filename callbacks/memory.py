"""`MemoryReport`: what each process holds of base model and editor, and the most memory it took."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from editors.common.files import save_json
from editors.training.module import Editor

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class MemoryReport(Callback):
    """Writes `results/memory.json` when training ends: a list with an entry for each process.

    `base_parameters` and `editor_parameters` are numbers that stay with the process, `base_bytes` and `editor_bytes`
    what they take. `bytes_before` is its memory before the base model is loaded, `peak_loading` and `peak_training` are
    the most it took until the first step and since then, validations included. On a GPU memory is what torch has
    allocated there; elsewhere it is what the process has in RAM, which only Linux tells (0 otherwise).
    """

    def __init__(self) -> None:
        self._bytes_before = self._peak_loading = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is loaded yet."""
        if stage == "fit":
            device = trainer.strategy.root_device
            _reset_peak(device)
            self._bytes_before = _present(device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is loaded."""
        device = trainer.strategy.root_device
        self._peak_loading = _peak(device)
        _reset_peak(device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what all processes know, and write it."""
        assert isinstance(pl_module, Editor)
        base, editor = list(pl_module.lm.parameters()), list(pl_module.network.parameters())
        own = {
            "process": trainer.global_rank,
            "base_parameters": _numbers(base),
            "base_bytes": _bytes(base),
            "editor_parameters": _numbers(editor),
            "editor_bytes": _bytes(editor),
            "bytes_before": self._bytes_before,
            "peak_loading": self._peak_loading,
            "peak_training": _peak(trainer.strategy.root_device),
        }
        everyone: list[Any] = [own]
        if distributed.is_initialized():
            everyone = [None] * trainer.world_size
            distributed.all_gather_object(everyone, own)
        if trainer.is_global_zero:
            save_json(everyone, Path(trainer.default_root_dir) / "results" / "memory.json")


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; 0 where the system does not tell."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most memory this process has had in RAM since it started, or since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Start a new peak measurement at the present memory. Returns whether the system allows that."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE) if _STATUS.exists() else None
    return int(found[1]) * 1024 if found else 0


def _present(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak()


def _here(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that stay with this process: DeepSpeed's ZeRO-3 keeps its part of a parameter beside it."""
    return [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in _here(parameters))


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in _here(parameters))
