"""Tests of `editors.making.streaming`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.common.errors import EditorError
from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal
from editors.making.streaming import chunks, joined
from editors.texts.episodes import RequestBatch
from editors.texts.requests import EditRequest
from tests.editors.conftest import REQUESTS
from tests.tiny_world import TinyWorld

# Texts of quite different lengths, not in the order of their lengths.
MIXED = [
    EditRequest(f"{'and tell me ' * times}{request.prompt}", request.target)
    for times, request in zip((3, 0, 5, 1), REQUESTS, strict=True)
]


@pytest.fixture(scope="module")
def loaded(artifact: Path) -> LoadedEditor:
    return load_editor(artifact)


@pytest.fixture(scope="module")
def model(tiny_world: TinyWorld) -> PreTrainedModel:
    return load_base_model(BaseModelConfig(str(tiny_world.model), dtype="float32"))


@pytest.fixture(scope="module")
def tokenizer(tiny_world: TinyWorld) -> PreTrainedTokenizerBase:
    return load_tokenizer(BaseModelConfig(str(tiny_world.model)))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of all batches that are captured."""
    shapes: list[tuple[int, int]] = []
    original = FrozenLM.capture

    def capture(lm: FrozenLM, requests: RequestBatch, *rest: Any) -> EditSignal:
        rows, width = requests.tokens.input_ids.shape
        shapes.append((rows, width))
        return original(lm, requests, *rest)

    monkeypatch.setattr(FrozenLM, "capture", capture)
    return shapes


@pytest.mark.parametrize("most", [1, 40, 60, 1000])
def test_edits_made_some_at_a_time_are_those_of_separate_calls_in_their_order(
    loaded: LoadedEditor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    monkeypatch.setattr(loaded.network, "tokens_at_once", most)
    together = low_rank(loaded.edit_each(model, tokenizer, MIXED))
    assert together.num_episodes == len(MIXED)
    for number, request in enumerate(MIXED):
        alone = low_rank(loaded.edit(model, tokenizer, [request]))
        for site, update in alone.updates.items():
            found = together.updates[site].weight_delta(number)
            torch.testing.assert_close(found, update.weight_delta(), rtol=1e-5, atol=1e-5)
        assert together.select(number).metadata["requests"] == [request.texts()]


def test_no_more_tokens_are_captured_at_once_than_allowed(
    loaded: LoadedEditor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    captured: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(loaded.network, "tokens_at_once", 100)
    loaded.edit_each(model, tokenizer, MIXED * 3)
    assert sum(rows for rows, _ in captured) == len(MIXED) * 3
    assert all(rows * width <= 100 or rows == 1 for rows, width in captured)
    assert any(rows > 1 for rows, _ in captured)


def test_a_request_that_cannot_be_read_is_refused_before_any_edit_is_made(
    loaded: LoadedEditor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    captured: list[tuple[int, int]],
) -> None:
    monkeypatch.setattr(loaded.network, "tokens_at_once", 1)
    with pytest.raises(EditorError, match="the base model's limit is 160"):
        loaded.edit_each(model, tokenizer, [*MIXED, EditRequest("again and " * 120, "Lume")])
    assert captured == []


def test_a_group_holds_similar_lengths_and_no_more_than_allowed() -> None:
    lengths = [9, 3, 30, 4, 3, 8]
    found = chunks(lengths, 18)
    assert found == [[1, 3, 4], [0, 5], [2]]


def test_joined_edits_keep_their_places_and_are_padded_with_rows_of_zeros() -> None:
    def edit(*values: float, rank: int) -> LowRankEdit:
        u = torch.tensor(values).view(-1, 1, 1).expand(len(values), rank, 2)
        return LowRankEdit({"layer": SiteUpdate(u, 10 * u)})

    whole = joined([edit(1.0, 2.0, rank=1), edit(3.0, rank=2)], [[2, 0], [1]]).updates["layer"]
    assert whole.u.tolist() == [[[2.0, 2.0], [0.0, 0.0]], [[3.0, 3.0], [3.0, 3.0]], [[1.0, 1.0], [0.0, 0.0]]]
    assert torch.equal(whole.v, 10 * whole.u)
