"""Tests of `EditMethod`: what a method has that gives `make` alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.texts.episodes import RequestBatch
from tests.tiny_models import random_edit, tiny_lm, tiny_model


class Fixed(EditMethod):
    """Makes the same edit whatever is asked."""

    def __init__(self, site_widths: dict[str, tuple[int, int]], config: int) -> None:
        super().__init__()
        self.site_widths, self.config = site_widths, config

    def make(self, lm: FrozenLM, requests: RequestBatch, in_force: Edit | None = None) -> LowRankEdit:
        return random_edit(self.site_widths, seed=self.config)


def test_a_method_that_makes_nothing_is_none() -> None:
    class Nothing(EditMethod):
        pass

    with pytest.raises(TypeError, match="make"):
        Nothing()  # type: ignore[abstract]


def test_it_is_built_of_widths_and_configuration() -> None:
    method = Fixed.build({"layer": (3, 4)}, 7)
    assert (method.site_widths, method.config) == ({"layer": (3, 4)}, 7)


def test_preparing_it_does_nothing() -> None:
    method = Fixed({"layer": (3, 4)}, 7)
    method.prepare(tiny_lm(tiny_model("llama")), ["1 2 3"])
    assert not torch.nn.Module.state_dict(method)


def test_it_has_no_models_to_keep(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="Fixed has no models of its own"):
        Fixed({}, 0).keep_models(tmp_path)
