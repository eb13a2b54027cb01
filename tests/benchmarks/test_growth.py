"""`benchmarks.growth` on a tiny random model; no test looks at how long anything takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks import growth
from benchmarks.growth import Cost, Size, last_blocks, measure_growth
from benchmarks.setting import Setting
from editors.base_models.loading import load_base_model
from editors.common.errors import UsageError
from tests.tiny_models import tiny_lm
from tests.tiny_world import write_model, write_tokenizer

VALUES = {"blocks": (2, 4), "edited_blocks": (1, 2), "rank": (4, 8), "episodes": (1, 2, 3), "tokens": (6, 9)}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = write_model(tmp_path_factory.mktemp("growth_model"))
    write_tokenizer(folder)
    return Setting(str(folder))


@pytest.fixture
def model(setting: Setting) -> PreTrainedModel:
    return load_base_model(setting.base_model_config()).requires_grad_(requires_grad=False)


@torch.no_grad()
def test_a_model_is_cut_and_put_back(model: PreTrainedModel) -> None:
    def run() -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
        return logits

    before, last = run(), model.model.layers[-1]
    with last_blocks(model, 1):
        assert tiny_lm(model, num_blocks=1).prefix_depth == 0
        assert model.model.layers[0] is last
        assert not torch.allclose(run(), before)
    assert torch.equal(run(), before)
    assert tiny_lm(model, num_blocks=1).prefix_depth == 3


@pytest.mark.parametrize("count", [0, 5])
def test_blocks_that_are_not_there_are_refused(model: PreTrainedModel, count: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to 4, .* got {count}"), last_blocks(model, count):
        pass


def test_one_size_at_a_time_is_changed_and_the_reference_is_measured_once(setting: Setting) -> None:
    measured: list[Size] = []

    def seconds(_: object, __: object, size: Size, steps: int) -> tuple[float, float]:
        measured.append(size)
        return 6.0 * steps * size.episodes, 3.0

    costs = measure_growth(setting, VALUES, 2, seconds)
    reference = Size(blocks=4, edited_blocks=1, rank=4, episodes=2, tokens=6)
    assert {axis: [c.size for c in own] for axis, own in costs.items()} == {
        axis: [replace(reference, **{axis: value}) for value in own] for axis, own in VALUES.items()
    }
    for cost in (cost for own in costs.values() for cost in own):
        assert cost.unit > 0
        in_seconds = [units * cost.unit for units in (cost.cold, cost.warm)]
        assert in_seconds == pytest.approx([12.0, 3.0 / cost.size.episodes]), "of one edit"
    assert len(measured) == len(set(measured)) == 1 + sum(len(own) - 1 for own in VALUES.values())


def test_once_warm_no_text_is_read_again(setting: Setting, model: PreTrainedModel) -> None:
    run = growth.Steps(setting, model, Size(4, 1, 4, episodes=2, tokens=6))
    passes: list[int] = []  # how many texts the first block computes at a time
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    run.median_seconds(1)
    assert passes == [6, 6]
    run.warm_up()
    assert passes == [6, 6, 6]
    run.median_seconds(1)
    assert passes == [6, 6, 6]


def test_growth_from_the_command_line(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "growth.json"
    values = [f"--{axis.replace('_', '-')}={own[0]}" for axis, own in VALUES.items() if axis != "blocks"]
    values += ["--blocks", "4", "2", "--steps=1"]
    growth.main([f"--base-model={setting.base_model}", *values, f"--output={output}"])
    written = json.loads(output.read_text())["growth"]
    assert list(written) == ["blocks"], "the others have one value"
    assert [cost["size"]["blocks"] for cost in written["blocks"]] == [2, 4]
    assert all(cost["cold"] > 0 and cost["warm"] > 0 and cost["unit"] > 0 for own in written.values() for cost in own)
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "blocks of the base model" in capsys.readouterr().out


def test_every_point_is_inside_its_panel() -> None:
    size = Size(blocks=30, edited_blocks=3, rank=512, episodes=4, tokens=16)
    costs = {
        "blocks": [Cost(replace(size, blocks=b), cold=0.1, warm=0.05, unit=1.0) for b in (10, 30)],
        "tokens": [Cost(replace(size, tokens=t), cold=t / 16, warm=t / 32, unit=1.0) for t in (8, 64)],
    }
    for panel in growth.drawn(costs).axes:
        low, high = panel.get_ylim()
        assert low == 0
        points: list[Any] = [line.get_ydata() for line in panel.lines]
        assert all(max(values) < high for values in points)
