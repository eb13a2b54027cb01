"""`ResultPlot`: pictures of a run — losses and validation metrics over the training, and bars before and after."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from lightning import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.results import stage_metrics
from editors.scoring.names import LOCALITY, TOKEN_LEVEL, before_edit
from editors.texts.episodes import EditBatch

_COLOURS = dict(zip(TOKEN_LEVEL, ("#1b6ca8", "#e08e2b", "#3a8d5d"), strict=True))


class ResultPlot(Callback):
    """Writes `plots/training.png` at the end of training and `plots/test.png` at the end of test.

    Args:
        smoothing: steps over which the training losses are averaged.
    """

    def __init__(self, smoothing: int = 10) -> None:
        self.smoothing = smoothing
        self._losses: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._scores: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Keep the losses whenever the loggers do, so that no extra synchronisation is caused."""
        if trainer._logger_connector.should_update_logs:  # noqa: SLF001 - Lightning has no public form of it
            for name in ("edit", "locality"):
                value = trainer.callback_metrics.get(f"train/{name}_loss")
                if value is not None:
                    self._losses[name].append((trainer.global_step, float(value)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation metrics."""
        if not trainer.sanity_checking:
            metrics = stage_metrics(trainer, "val")
            for promise, name in TOKEN_LEVEL.items():
                if name in metrics:
                    self._scores[promise].append((trainer.global_step, metrics[name]))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw losses and validation metrics over the steps."""
        if trainer.is_global_zero and self._losses:
            figure = _figure(2)
            left, right = figure.axes
            _draw_losses(left, self._losses, self.smoothing)
            _draw_scores(right, self._scores)
            _save(figure, trainer, "training.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the promises before and after."""
        metrics = stage_metrics(trainer, "test")
        if trainer.is_global_zero and metrics:
            figure = _figure(1)
            _draw_bars(figure.axes[0], metrics)
            _save(figure, trainer, "test.png")

    def state_dict(self) -> dict[str, Any]:
        """The curves so far, so that a resumed run draws them whole."""
        return {"losses": dict(self._losses), "scores": dict(self._scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curves."""
        self._losses = defaultdict(list, state_dict["losses"])
        self._scores = defaultdict(list, state_dict["scores"])


def _figure(panels: int) -> Figure:
    figure = Figure(figsize=(6 * panels, 4), layout="constrained")
    figure.subplots(1, panels)
    return figure


def _save(figure: Figure, trainer: Trainer, name: str) -> None:
    path = Path(trainer.default_root_dir) / "plots" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.size": 10}):
        figure.savefig(path, dpi=130)


def _draw_losses(axes: Axes, losses: dict[str, list[tuple[int, float]]], smoothing: int) -> None:
    labels = {"edit": "edit: NLL of the target (paraphrase)", "locality": "locality loss"}
    for name, points in losses.items():
        values = [value for _, value in points]
        windows = [values[max(0, i - smoothing) : i + 1] for i in range(len(values))]
        smooth = [sum(window) / len(window) for window in windows]
        axes.plot([step for step, _ in points], smooth, label=labels[name])
    axes.set(xlabel="step", ylabel="nats", yscale="log", title="Training losses")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """The legend below the panel: a curve may be anywhere in it."""
    offset = -0.16  # below the numbers of the axis and its name
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, offset), ncols=3, borderaxespad=0)


def _draw_scores(axes: Axes, scores: dict[str, list[tuple[int, float]]]) -> None:
    for promise, points in scores.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=promise, color=_COLOURS[promise])
    axes.set(xlabel="step", ylabel="teacher-forced, token level", ylim=(0, 1.03), title="Validation")
    axes.set_xlim(left=0)
    if scores:
        _legend_below(axes)


def _draw_bars(axes: Axes, metrics: dict[str, float]) -> None:
    for place, (promise, name) in enumerate(TOKEN_LEVEL.items()):
        before = metrics.get(before_edit(name), 1.0 if promise == LOCALITY else 0.0)
        axes.bar(place - 0.2, before, 0.38, color="#c8ccd0", label="before the edit" if place == 0 else None)
        bar = axes.bar(place + 0.2, metrics.get(name, 0.0), 0.38, color=_COLOURS[promise])
        axes.bar_label(bar, fmt=lambda value: f"{value:.1%}")
    axes.set_xticks(range(len(TOKEN_LEVEL)), TOKEN_LEVEL)
    axes.set(ylim=(0, 1.1), ylabel="teacher-forced, token level", title="Single edits: before (grey) and after")
