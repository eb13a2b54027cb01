"""Tests of `configs/lm/`: the layers exist in models of the published shapes, and memory is what the comment says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from editors.base_models.loading import BaseModelConfig, build_skeleton
from editors.base_models.sites import linear_widths, resolve_sites
from editors.methods.mend.network import MENDConfig, MENDNetwork
from editors.training.plan.architectures import find_architecture

FOLDER = Path(__file__).parents[1] / "configs" / "lm"
# Configuration file -> how many layers are edited.
LARGE = {"t5-xl": 8, "gpt-j-6b": 6, "llama-3.1-8b": 9, "llama-3.1-70b": 9, "qwen3-8b": 9}
# A parameter that is trained takes 4 bytes for itself, its gradient and Adam's two moments each.
TRAINED_BYTES = 16


def model_of(base: dict[str, Any]) -> PreTrainedModel:
    """The base model without weights."""
    config = BaseModelConfig(**base)
    return build_skeleton(config, find_architecture(config)[0])


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def mend_parameters(model: PreTrainedModel, sites: list[str]) -> int:
    widths = {site: linear_widths(model.get_submodule(site)) for site in resolve_sites(model, sites)}
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MENDNetwork(widths, MENDConfig()).parameters())


def test_every_large_model_is_covered() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*LARGE, "smollm2-135m"}


@pytest.mark.parametrize("name", LARGE)
def test_the_named_layers_exist_and_memory_is_as_the_comment_says(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text)["model"]["init_args"]["base_model"]
    model = model_of(base)
    assert len(resolve_sites(model, base["sites"])) == LARGE[name]
    assert base["dtype"] == "bfloat16"
    total, mend = parameters(model), mend_parameters(model, base["sites"])
    comment = re.sub(r"\n# ?", " ", text)
    for said in (
        f"{2 * total / 1e9:.1f} GB in bfloat16 ({total / 1e9:.2f} G parameters)",
        f"{TRAINED_BYTES * mend / 1e9:.1f} GB for MEND at rank 1920 ({mend / 1e6:.0f} M parameters in float32",
    ):
        assert said in comment


def test_the_surveys_t5_fits_with_the_change_that_the_comment_names() -> None:
    text = (FOLDER / "t5-xl.yaml").read_text(encoding="utf-8")
    base = yaml.safe_load(text.replace("wi_0", "wi"))["model"]["init_args"]["base_model"]
    sites = base["sites"]
    model = model_of({**base, "name": "google-t5/t5-3b"})
    assert len(resolve_sites(model, sites)) == 8
    sizes = 2 * parameters(model), TRAINED_BYTES * mend_parameters(model, sites)
    assert "{:.1f} GB, plus {:.1f} GB for MEND".format(*(size / 1e9 for size in sizes)) in text
