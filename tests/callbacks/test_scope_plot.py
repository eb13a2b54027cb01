"""The ROC curve against counting, and the picture of a test run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule

from callbacks.scope_plot import ScopePlot, roc_curve
from editors.base_models.loading import BaseModelConfig
from editors.methods.serac.module import SERAC


def test_curve_is_that_of_counting() -> None:
    positive, negative = torch.tensor([0.9, 0.4, 0.7]), torch.tensor([0.1, 0.4, 0.8, 0.05])
    wrong, right = roc_curve(positive, negative)
    points = list(zip(wrong.tolist(), right.tolist(), strict=True))
    assert points[0] == (0, 0)
    assert points[-1] == (1, 1)
    for threshold in (0.9, 0.8, 0.7, 0.4, 0.1, 0.05):
        share = [sum(s >= threshold for s in scores.tolist()) / len(scores) for scores in (negative, positive)]
        assert any(point == pytest.approx(share) for point in points)
    # The area is the chance that a positive score is above a negative one; a tie counts half.
    pairs = [(p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()]
    assert float(torch.trapezoid(right, wrong)) == pytest.approx(sum(pairs) / len(pairs))


def trainer(folder: Any) -> Any:
    return SimpleNamespace(default_root_dir=str(folder), is_global_zero=True, sanity_checking=False)


def test_picture_of_a_test(tmp_path: Any) -> None:
    editor = SERAC(BaseModelConfig("nothing"))
    editor.network = SimpleNamespace(threshold=torch.tensor([0.5]))  # type: ignore[assignment]
    ScopePlot().on_test_end(trainer(tmp_path), editor)
    assert not list(tmp_path.iterdir()), "there are no scores to draw"
    editor.scope_scores = {"paraphrase": torch.rand(9), "locality": torch.rand(5), "other_edits": torch.rand(5)}
    ScopePlot().on_test_end(trainer(tmp_path), editor)
    assert (tmp_path / "plots" / "test_scope.png").stat().st_size > 0
    ScopePlot().on_validation_end(trainer(tmp_path), editor)
    assert (tmp_path / "plots" / "val_scope.png").exists()


def test_other_editors_have_no_such_picture(tmp_path: Any) -> None:
    ScopePlot().on_test_end(trainer(tmp_path), LightningModule())
    assert not list(tmp_path.iterdir())
