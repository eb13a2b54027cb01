"""`ExportArtifact`: write the trained editor as an artifact when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.provenance import run_facts
from callbacks.results import stage_metrics
from editors.base import Editor
from editors.export.artifact import ArtifactConfig, save_artifact


class ExportArtifact(Callback):
    """Exports the editor to `artifact/` in the run's folder at the end of training.

    The card shows the metrics of the last validation, if the editor was not trained on after it.

    Args:
        name: name of the folder inside the run's folder.
    """

    def __init__(self, name: str = "artifact") -> None:
        self.name = name
        self._metrics: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forget metrics of weights that are about to move."""
        self._metrics = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the weights as they are."""
        if not trainer.sanity_checking:
            self._metrics = stage_metrics(trainer, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the weights as they are after the last step."""
        assert isinstance(pl_module, Editor)
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            results = {"metrics": self._metrics, **run_facts(trainer, pl_module)}
            folder = export_artifact(pl_module, Path(trainer.default_root_dir) / self.name, results)
            rank_zero_info(f"Exported the editor to {folder}")


def export_artifact(editor: Editor, folder: Path, results: dict[str, Any]) -> Path:
    """Write the editor as an artifact.

    Args:
        editor: with its base model loaded.
        folder: where to; must not exist, or be empty.
        results: metrics and the facts that belong to them.
    """
    config = ArtifactConfig(
        editor=editor.registered_name,
        editor_config=editor.network_config(),
        base_model=editor.base_model_dict(),
        architecture=type(editor.frozen.model).__name__,
        base_weights=editor.base_weights,
        site_widths={site: list(widths) for site, widths in editor.frozen.site_widths().items()},
        results=results,
    )
    return save_artifact(folder, config, editor.network)
