"""`AnnealMargins`: tighten KE's constraints as its edits succeed (De Cao et al. 2021)."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer

from editors.common.errors import EditorError
from editors.methods.ke.module import KE
from editors.scoring.names import RELIABILITY, TOKEN_LEVEL


class AnnealMargins(Callback):
    """After each validation with enough success, multiplies the margins of KE's constraints, down to their ends.

    With KE's simple objective there are no margins, and nothing happens.

    Args:
        metric: what counts as success.
        threshold: success above this tightens the margins. Paper's code: 0.9.
        factor: what the margins are multiplied by, in (0, 1). Paper's code: 0.8.

    Raises:
        EditorError: `factor` is out of range.
    """

    def __init__(
        self,
        metric: str = f"val/{TOKEN_LEVEL[RELIABILITY]}",
        threshold: float = 0.9,
        factor: float = 0.8,
    ) -> None:
        if not 0 < factor < 1:
            raise EditorError(f"AnnealMargins.factor must be between 0 and 1, got {factor}; the paper's code uses 0.8")
        self.metric = metric
        self.threshold = threshold
        self.factor = factor

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, before the base model is loaded, that there are margins.

        Raises:
            EditorError: the editor is not KE.
        """
        if not isinstance(pl_module, KE):
            raise EditorError(f"AnnealMargins is for KE, not for {type(pl_module).__name__}; take it off the callbacks")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tighten the margins; never after a sanity check or outside of training.

        Raises:
            EditorError: the metric is not among those of the validation.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, KE)
        if self.metric not in trainer.callback_metrics:
            raise EditorError(
                f"AnnealMargins.metric {self.metric!r} is not among the metrics of validation, which are: "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        if float(trainer.callback_metrics[self.metric]) > self.threshold:
            pl_module.tighten_margins(self.factor)
