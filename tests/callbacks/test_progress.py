"""Tests of `callbacks.RunProgressBar`: it counts the steps of the run, and is shown on terminals only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks import RunProgressBar


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noted(RunProgressBar):
    """Notes what is shown after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float, float | None]] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        if self.progress is not None and self.train_progress_bar_id is not None:
            task = next(task for task in self.progress.tasks if task.id == self.train_progress_bar_id)
            self.seen.append((task.description.strip(), task.completed, task.total))


def fitted(watched: bool, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Noted:
    monkeypatch.setattr("sys.stdout.isatty", lambda: watched, raising=False)
    bar = Noted()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[bar], **quiet, **settings)
    trainer.fit(Model(), DataLoader(torch.ones(3, 1)))  # type: ignore[arg-type]
    return bar


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_steps_of_the_whole_run_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = fitted(True, monkeypatch, max_steps=7, max_epochs=1000)
    assert [(done, total) for _, done, total in bar.seen] == [(step, 7) for step in range(1, 8)]
    assert {name for name, _, _ in bar.seen} == {"Training steps"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_accumulated_batches_are_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = fitted(True, monkeypatch, max_steps=4, max_epochs=1000, accumulate_grad_batches=2)
    assert [(done, total) for _, done, total in bar.seen][-1] == (4, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_is_shown_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = fitted(False, monkeypatch, max_steps=4, max_epochs=1000)
    assert bar.is_disabled
    assert not bar.seen
    assert "Training steps" not in capsys.readouterr().out
