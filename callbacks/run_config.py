"""`RunConfig`: the resolved configuration in the run's folder, once the run has really started."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class RunConfig(SaveConfigCallback):
    """Saves `config.yaml` when base model, data and checkpoint are loaded and the first step or batch is next.

    Lightning saves it before they are, so that a start that fails leaves a folder with that file alone; and it saves it
    where the first logger writes, which may be below the run's folder.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration."""
        self._save(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration, where there was no sanity check."""
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration of a resumed run that had no step left."""
        self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration of a run that validates only."""
        self._save(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self.already_saved:
            path = Path(trainer.default_root_dir) / self.config_filename
            self.parser.save(self.config, path, skip_unset=False, overwrite=self.overwrite, multifile=self.multifile)
        self.already_saved = True
