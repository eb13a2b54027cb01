"""Callbacks that look into a process while it trains with others."""

from __future__ import annotations

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from editors.base import Editor


class Held(Callback):
    """Writes how many bytes of the base model and of the editor this process holds, and how many numbers there are.

    Args:
        folder: where `RANK.json` is written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count."""
        assert isinstance(pl_module, Editor)
        found = {}
        for name, module in (("base", pl_module.frozen), ("network", pl_module.network)):
            parameters = list(module.parameters())
            found[name] = sum(getattr(p, "ds_tensor", p).nbytes for p in parameters)
            found[f"all_{name}"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))
