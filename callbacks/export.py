"""`ExportArtifact`: write the trained editor when training ends; and the forms that `train.py export` writes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from callbacks.results import stage_metrics
from editors.artifacts.config import ArtifactConfig
from editors.artifacts.easyedit.exchange import require_easyedit, save_easyedit
from editors.artifacts.editor import LoadedEditor, save_artifact
from editors.common.collectives import has_sharded_parameters
from editors.common.errors import EditorError, UsageError
from editors.common.sharding import whole_state
from editors.training.module import Editor
from editors.training.run.provenance import run_facts, trained_steps

EditorForm = Literal["artifact", "easyedit", "lora", "merged"]


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
        """Export the weights as they are after the last step.

        Raises:
            EditorError: no step was made: a card must not speak of an editor that was never trained.
        """
        assert isinstance(pl_module, Editor)
        if not getattr(trainer, "fast_dev_run", False) and not trained_steps(trainer, pl_module):
            raise EditorError(
                "no step was trained, so there is no editor to export: raise trainer.max_steps, max_epochs, max_time "
                "or limit_train_batches"
            )
        if not getattr(trainer, "fast_dev_run", False):
            results = {"metrics": self._metrics, **run_facts(trainer, pl_module)}
            folder = export_artifact(pl_module, Path(trainer.default_root_dir) / self.name, results)
            rank_zero_info(f"Exported the editor to {folder}")


def export_artifact(editor: Editor, folder: Path, results: dict[str, Any]) -> Path:
    """Write the editor as an artifact, on the first process; all have to call it.

    Args:
        editor: with its base model loaded.
        folder: where to; must not exist, or be empty.
        results: metrics and the facts that belong to them.
    """
    first = getattr(rank_zero_only, "rank", 0) == 0
    state = whole_state(editor.network, keep=first)
    return save_artifact(folder, _artifact_config(editor, results), editor.network, state) if first else folder


def require_form(editor: Editor, form: EditorForm, model_name: str | None) -> None:
    """Check, before the editor is scored and even loaded, that it can be written in this form.

    Args:
        editor: the editor.
        form: what to write.
        model_name: the base model for EasyEdit; by default as in training.

    Raises:
        ArtifactError: EasyEdit cannot use this editor.
        UsageError: the form is one of a single edit, or `model_name` is given for another form.
    """
    if form in ("lora", "merged"):
        raise UsageError(
            f"--format {form} is a form of one edit, and an editor makes many. Export the editor as an artifact, make "
            "the edit with `python -m editors apply ARTIFACT --prompt … --target … --save EDIT.safetensors`, and write "
            f"it with `python -m editors convert EDIT.safetensors --to {form} --output FOLDER`"
        )
    if form == "easyedit":
        base = editor.base_model
        require_easyedit(editor.registered_name, editor.method_config, base, model_name or base.name)
    elif model_name is not None:
        raise UsageError("--model_name is for --format easyedit: an artifact names the base model as in training")


def export_editor(
    editor: Editor, folder: Path, results: dict[str, Any], form: EditorForm, model_name: str | None
) -> Path:
    """Write the editor in a form that `require_form` accepts; arguments are those of it and of `export_artifact`."""
    if form == "easyedit":
        if has_sharded_parameters(editor.network):
            raise UsageError("--format easyedit needs the editor whole: add --config configs/strategy/cpu.yaml")
        if getattr(rank_zero_only, "rank", 0):
            return folder
        return save_easyedit(folder, LoadedEditor(_artifact_config(editor, results), editor.network), model_name)
    return export_artifact(editor, folder, results)


def _artifact_config(editor: Editor, results: dict[str, Any]) -> ArtifactConfig:
    return ArtifactConfig(
        editor=editor.registered_name,
        editor_config=asdict(editor.network.config),
        base_model=editor.plain_base_model(),
        architecture=type(editor.lm.model).__name__,
        base_weights=editor.base_weights,
        site_widths={site: list(widths) for site, widths in editor.lm.site_widths().items()},
        results=results,
    )
