"""Scores of an edit memory: texts out of its scope have the base model's, and are not run again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.module import SERAC
from editors.methods.serac.routing import Routing
from editors.scoring.evaluator import Evaluator
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch
from tests.editors.methods.serac.worlds import data_module, new_editor, routed
from tests.tiny_world import TinyWorld


@pytest.fixture
def editor(tiny_world: TinyWorld) -> SERAC:
    return new_editor(tiny_world).eval()


def everything(_: MemoryEdit, texts: TokenBatch) -> Tensor:
    return torch.ones(texts.num_texts, dtype=torch.bool)


def batches(world: TinyWorld, editor: SERAC) -> Iterator[EditBatch]:
    """The validation data."""
    data = data_module(world, editor)
    data.setup("validate")
    loader: Any = data.val_dataloader()
    yield from loader


def scores(world: TinyWorld, editor: SERAC) -> dict[str, float]:
    evaluator = Evaluator(editor.lm, editor.network)
    for batch in batches(world, editor):
        evaluator.update(batch, generate=True)
    return evaluator.compute(torch.device("cpu"))


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_scores_are_those_with_every_text_run(
    tiny_world: TinyWorld, editor: SERAC, monkeypatch: pytest.MonkeyPatch, routing: Routing
) -> None:
    editor.network.threshold.fill_(threshold(tiny_world, editor))
    make = editor.network.make
    monkeypatch.setattr(editor.network, "make", lambda *given: routed(make(*given), routing))
    found = scores(tiny_world, editor)
    monkeypatch.setattr(MemoryEdit, "may_change", everything)
    assert found == pytest.approx(scores(tiny_world, editor), abs=1e-5)


def test_texts_out_of_scope_are_not_run_again(tiny_world: TinyWorld, editor: SERAC) -> None:
    batch = next(batches(tiny_world, editor))
    read: list[int] = []
    hook = editor.lm.model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    counts = []
    for limit in (0.0, 1.0):
        editor.network.threshold.fill_(limit)
        read.clear()
        Evaluator(editor.lm, editor.network).update(batch, generate=False)
        counts.append(sum(read))
    hook.remove()
    assert batch.ground_truth is not None
    parts = (batch.edit, batch.rephrase, batch.locality, batch.ground_truth)
    assert counts[0] == counts[1] + sum(part.num_texts for part in parts)


def threshold(world: TinyWorld, editor: SERAC) -> float:
    """One that puts about half of the paraphrases and locality texts into scope."""
    batch = next(batches(world, editor))
    edit = editor.network.make(editor.lm, batch.requests)
    found = [
        edit.router.route(edit.base_texts.prompts(texts), texts.episode.tolist()).log_score
        for texts in (batch.rephrase, batch.locality)
    ]
    return float(torch.cat(found).exp().median())
