"""Tests of `AnnealMargins`: when margins are tightened, and when not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from callbacks.margins import AnnealMargins
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.methods.ke.constraint import Constraint, Margin
from editors.methods.ke.module import KE
from editors.methods.mend.module import MEND
from tests.tiny_world import TinyWorld

METRIC = "val/reliability/teacher_forced/token_accuracy"


def new_editor(**arguments: Any) -> KE:
    return KE(BaseModelConfig("none"), kl_margin=Margin(0.1, 0.07), norm_margin=Margin(0.01, 0.001), **arguments)


def trainer(success: float, *, sanity: bool = False, fn: str = "fit") -> Trainer:
    state = SimpleNamespace(fn=fn)
    metrics = {METRIC: torch.tensor(success)}
    return cast(Trainer, SimpleNamespace(sanity_checking=sanity, state=state, callback_metrics=metrics))


def margins(editor: KE) -> list[float]:
    return [cast(Constraint, constraint).margin.item() for constraint in editor.constraints.values()]


def test_success_tightens_every_margin_down_to_its_end() -> None:
    editor = new_editor()
    for expected in ([0.08, 0.008], [0.07, 0.0064]):
        AnnealMargins().on_validation_end(trainer(0.95), editor)
        assert margins(editor) == pytest.approx(expected)


@pytest.mark.parametrize(
    "situation", [{"success": 0.9}, {"success": 0.95, "sanity": True}, {"success": 0.95, "fn": "validate"}]
)
def test_otherwise_margins_stay(situation: dict[str, Any]) -> None:
    editor = new_editor()
    AnnealMargins().on_validation_end(trainer(**situation), editor)
    assert margins(editor) == pytest.approx([0.1, 0.01])


@pytest.mark.slow
def test_training_tightens_after_each_validation_but_the_sanity_check(tiny_world: TinyWorld, tmp_path: Path) -> None:
    cli = tiny_world.run(
        "fit",
        tmp_path / "runs",
        "--trainer.callbacks+={class_path: callbacks.AnnealMargins, init_args: {threshold: -1}}",
        "--trainer.num_sanity_val_steps=1",
        "--trainer.val_check_interval=2",
        "--trainer.max_steps=4",
        editor="ke",
    )
    assert margins(cli.model) == pytest.approx([0.1 * 0.8**2, 0.01 * 0.8**2])
    (last,) = tmp_path.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["state_dict"]["constraints.kl.margin"].item() == pytest.approx(0.064)


def test_simple_objective_has_no_margins_to_tighten() -> None:
    editor = new_editor(objective="simple")
    before = {name: tensor.clone() for name, tensor in editor.state_dict().items()}
    AnnealMargins().on_validation_end(trainer(0.95), editor)
    assert margins(editor) == []
    torch.testing.assert_close(dict(editor.state_dict()), before, rtol=0, atol=0)


def test_another_measure_of_success() -> None:
    editor = new_editor()
    with pytest.raises(EditorError, match=rf"AnnealMargins\.metric 'val/none' is not among .*: {METRIC}"):
        AnnealMargins(metric="val/none").on_validation_end(trainer(0.95), editor)
    AnnealMargins(threshold=0.5, factor=0.9).on_validation_end(trainer(0.6), editor)
    assert margins(editor) == pytest.approx([0.09, 0.009])


def test_other_editors_have_no_margins() -> None:
    with pytest.raises(EditorError, match=r"AnnealMargins is for KE, not for MEND"):
        AnnealMargins().setup(trainer(1.0), MEND(BaseModelConfig("none")), "fit")
    AnnealMargins().setup(trainer(1.0), new_editor(), "fit")
    with pytest.raises(EditorError, match="not for Module"):
        AnnealMargins().setup(trainer(1.0), cast(LightningModule, nn.Module()), "fit")


@pytest.mark.parametrize("factor", [0.0, 1.0, 1.5])
def test_factor_must_shrink(factor: float) -> None:
    with pytest.raises(EditorError, match=r"factor must be between 0 and 1, got"):
        AnnealMargins(factor=factor)
