"""Tests of `find_architecture`: published sizes, and which place is looked at first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from editors.base_models.loading import BaseModelConfig, build_skeleton
from editors.common.errors import BaseModelError
from editors.training.plan.architectures import find_architecture
from tests.tiny_world import HIDDEN, TinyWorld

LM = Path(__file__).parents[4] / "configs" / "lm"
# Parameters as counted from the published weights.
PUBLISHED = {
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/t5-xl-ssm-nq": 2_849_757_184,
    "google-t5/t5-3b": 2_851_598_336,
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_that_come_as_architectures_have_the_published_size(name: str) -> None:
    settings, source = find_architecture(BaseModelConfig(name))
    model = build_skeleton(BaseModelConfig(name), settings)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert source == f"configs/lm/architectures/{name.replace('/', '--')}.json"


def test_every_model_of_a_configuration_is_here_or_comes_as_an_architecture() -> None:
    named = {yaml.safe_load(path.read_text())["model"]["init_args"]["base_model"]["name"] for path in LM.glob("*.yaml")}
    assert {name for name in named if not name.startswith("package:")} <= PUBLISHED.keys()
    assert {path.stem for path in (LM / "architectures").glob("*.json")} == {n.replace("/", "--") for n in PUBLISHED}


def test_capital_letters_do_not_matter() -> None:
    assert find_architecture(BaseModelConfig("EleutherAI/gpt-j-6B"))[0].model_type == "gptj"


def test_the_models_own_files_come_first(tiny_world: TinyWorld) -> None:
    settings, source = find_architecture(BaseModelConfig(str(tiny_world.model)))
    assert settings.hidden_size == HIDDEN
    assert source == "its own files"


def test_a_folder_or_a_file_can_be_given(tiny_world: TinyWorld, tmp_path: Path) -> None:
    away = BaseModelConfig("some/model")
    file = tmp_path / "shape.json"
    file.write_text((tiny_world.model / "config.json").read_text())
    for path in (str(tiny_world.model), str(file)):
        settings, source = find_architecture(away, path)
        assert settings.hidden_size == HIDDEN
        assert source == path


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no such file, nor a folder with a config\.json"):
        find_architecture(BaseModelConfig("some/model"), str(tmp_path))
    with pytest.raises(BaseModelError, match="'some/model' cannot be loaded"):
        find_architecture(BaseModelConfig("some/model"))
    strange = tmp_path / "strange.json"
    strange.write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(BaseModelError, match=r"strange\.json cannot be read"):
        find_architecture(BaseModelConfig("some/model"), str(strange))
