"""`ScopePlot`: how well SERAC's scope classifier tells what is in scope, as ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from editors.serac.module import SERAC

_LABELS = {"locality": "locality texts", "other_edits": "most similar other edits"}


class ScopePlot(Callback):
    """Writes `plots/STAGE_scope.png`: ROC curves of paraphrases against locality texts and against other edits.

    It does nothing for editors without a scope classifier.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves of the validation split."""
        if not trainer.sanity_checking:
            _draw("val", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves of the test split."""
        _draw("test", trainer, pl_module)


def _draw(stage: str, trainer: Trainer, editor: LightningModule) -> None:
    if not isinstance(editor, SERAC) or not trainer.is_global_zero:
        return
    scores: Mapping[str, Tensor] = editor.scope_scores
    if not len(scores["paraphrase"]):
        return
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes: Axes = figure.subplots()
    for name, label in _LABELS.items():
        if len(scores[name]):
            wrong, right = roc_curve(scores["paraphrase"], scores[name])
            area = float(torch.trapezoid(right, wrong))
            (line,) = axes.plot(wrong, right, label=f"{label} ({len(scores[name]):,}), area {area:.3f}")
            threshold = editor.network.threshold.cpu()
            place = [(scores[kind].cpu() > threshold).double().mean() for kind in (name, "paraphrase")]
            axes.plot(*place, marker="o", color=line.get_color())
    axes.set(
        xlabel="share of texts out of scope that count as in scope", ylabel="share of paraphrases in scope",
        title="Scope classifier (dots: the threshold in use)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    path = Path(trainer.default_root_dir) / "plots" / f"{stage}_scope.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 10}):
        figure.savefig(path, dpi=130)


def roc_curve(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """The receiver operating characteristic, from (0, 0) to (1, 1).

    Args:
        positive: `[P]` scores of what should be found.
        negative: `[N]` scores of what should not.

    Returns:
        For each threshold, the highest first, the share of `negative` and of `positive` that lies above it.
    """
    thresholds = torch.cat([positive, negative]).unique().flip(0)
    shares = [
        torch.cat([torch.zeros(1), (scores >= thresholds.unsqueeze(1)).float().mean(dim=1).cpu()])
        for scores in (negative, positive)
    ]
    return shares[0], shares[1]
