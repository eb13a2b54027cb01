"""Second moments of what layers read, against plain forwards of single texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.lm.frozen import FrozenLM
from editors.lm.input_moments import input_moments
from tests.tiny_models import ARCHITECTURES, tiny_lm, tiny_model

TEXTS = ("3 4 5 6 7", "8 9", "4 5 6 7 8 9 3", "")


def inputs_of_each_text(lm: FrozenLM, site: str) -> Tensor:
    """`[N, d_in]` what a site reads of the texts, each alone."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0].reshape(-1, args[0].shape[-1]))

    handle = lm.model.get_submodule(site).register_forward_pre_hook(keep)
    with torch.no_grad():
        for text in TEXTS:
            ids = lm.tokenizer(text)["input_ids"]
            if ids:
                lm.model(torch.tensor([ids]))
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_moments_are_those_of_each_text_alone(architecture: str) -> None:
    assert architecture in ARCHITECTURES
    lm = tiny_lm(tiny_model(architecture))
    found = input_moments(lm, TEXTS)
    assert list(found) == lm.sites
    for site, moments in found.items():
        keys = inputs_of_each_text(lm, site)
        assert len(keys) == 14
        torch.testing.assert_close(moments.second, keys.mT @ keys / len(keys), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments.median_square, keys.square().sum(dim=1).median(), rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


def test_without_a_text_there_are_none() -> None:
    with pytest.raises(EditorError, match="need texts; there is none, or all are empty"):
        input_moments(tiny_lm(tiny_model("llama")), [""])
