"""`ScopePlot`: how well SERAC's scope classifier tells what is in scope, as ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from editors.methods.serac.module import SERAC


class ScopePlot(Callback):
    """Writes `plots/STAGE_scope.png`: ROC curves of paraphrases against each kind of text out of scope.

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
    if isinstance(editor, SERAC) and trainer.is_global_zero and "paraphrase" in editor.scope_scores:
        path = Path(trainer.default_root_dir) / "plots" / f"{stage}_scope.png"
        draw_scope(editor.scope_scores, float(editor.network.threshold), path)


def draw_scope(scores: Mapping[str, Tensor], threshold: float, path: Path) -> None:
    """Draw the ROC curve of paraphrases against each kind of text out of scope.

    Args:
        scores: of "paraphrase", and of other kinds, see `EditPairs.by_kind`.
        threshold: in use; a dot on each curve.
        path: the picture.
    """
    import matplotlib as mpl  # noqa: PLC0415 - the areas under the curves are computed without it
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for kind in (kind for kind in scores if kind != "paraphrase"):
        wrong, right = roc_curve(scores["paraphrase"], scores[kind])
        area = float(torch.trapezoid(right, wrong))
        label = f"{kind.replace('_', ' ')} ({len(scores[kind]):,}), area {area:.3f}"
        (line,) = axes.plot(wrong, right, label=label)
        place = [(scores[each].cpu() > threshold).double().mean() for each in (kind, "paraphrase")]
        axes.plot(*place, marker="o", color=line.get_color())
    axes.set(
        xlabel="share of texts out of scope that count as in scope", ylabel="share of paraphrases in scope",
        title="Scope classifier (dots: the threshold in use)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 10}):
        figure.savefig(path, dpi=130)


def roc_curve(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """The receiver operating characteristic, from (0, 0) to (1, 1).

    Args:
        positive: `[P]` scores of what should be found, from 0 to 1.
        negative: `[N]` scores of what should not.

    Returns:
        For each threshold, the highest first, the share of `negative` and of `positive` that lies above it.
    """
    scores = torch.cat([positive, negative]).cpu()
    wrong, right, _ = binary_roc(scores, (torch.arange(len(scores)) < len(positive)).long())
    return wrong, right
