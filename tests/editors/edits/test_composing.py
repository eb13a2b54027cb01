"""Tests of `editors.edits.composing`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.edits.composing import ComposedEdit, compose, low_rank
from tests.tiny_models import random_batch, random_edit, tiny_lm, tiny_model

TOKENS = random_batch((7, 4, 9))


@dataclass
class Louder:
    """An edit of another kind: the head's logits are multiplied."""

    factor: float
    num_episodes: int = 1
    keeps_prefix = shares_passes = True
    weight_updates = None

    def __post_init__(self) -> None:
        self.metadata: dict[str, Any] = {"factor": self.factor}
        self.device = torch.device("cpu")

    def may_change(self, texts: Any) -> Tensor:
        return torch.ones(texts.num_texts, dtype=torch.bool)

    def finite_episodes(self) -> Tensor:
        return torch.ones(self.num_episodes, dtype=torch.bool)

    def to(self, _: Any) -> Louder:
        return self

    def detach(self) -> Louder:
        return self

    def select(self, _: Any) -> Louder:
        return Louder(self.factor)

    @contextmanager
    def applied(self, model: nn.Module, episode: Tensor | None = None, texts: Any = None) -> Iterator[None]:
        head: Any = model
        handle = head.get_output_embeddings().register_forward_hook(lambda _, __, output: self.factor * output)
        try:
            yield
        finally:
            handle.remove()

    def save(self, path: str | Path) -> None:
        raise AssertionError(path)

    @staticmethod
    def compose(edits: Any) -> Louder:
        product = 1.0
        for edit in edits:
            product *= edit.factor
        return Louder(product)


def test_edits_of_one_kind_become_one_of_that_kind() -> None:
    edits = [random_edit({"a": (4, 5)}, seed=seed) for seed in (0, 1)]
    assert low_rank(compose(edits)).updates["a"].u.shape[1] == 6


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(EditorError, match="at least one edit"):
        compose([])
    with pytest.raises(EditorError, match=r"equal numbers of episodes compose, got \[1, 3\]"):
        compose([Louder(1.0), Louder(1.0, num_episodes=3)])
    with pytest.raises(EditorError, match="a Louder is no weight update"):
        low_rank(Louder(1.0))


@torch.no_grad()
def test_different_kinds_are_in_force_together() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=2)
    update = random_edit(lm.site_widths())
    together = compose([Louder(2.0), update, Louder(1.5)])
    assert isinstance(together, ComposedEdit)
    assert [type(part).__name__ for part in together.parts] == ["Louder", "LowRankEdit"]
    torch.testing.assert_close(lm.logits(TOKENS, together), 3 * lm.logits(TOKENS, update))
    more = compose([together, Louder(0.5)])
    torch.testing.assert_close(lm.logits(TOKENS, more.select(0)), 1.5 * lm.logits(TOKENS, update))
    with pytest.raises(EditorError, match="no weight update"):
        low_rank(together)
    with pytest.raises(EditorError, match=r"different kinds \(Louder, LowRankEdit\) have no common file"):
        together.save("nowhere.safetensors")
