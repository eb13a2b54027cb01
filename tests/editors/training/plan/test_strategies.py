"""Tests of the arithmetic of strategies, with numbers that can be checked by head."""

from __future__ import annotations

from dataclasses import replace

import pytest

from editors.training.plan.step import StepMemory
from editors.training.plan.strategies import STRATEGIES, EditorSize, memory_of_each, traffic_per_step

GIGA = 10**9
# A base model of 8 G parameters in two bytes, a hypernetwork of 250 M in four; all bytes.
SIZE = EditorSize(
    base_elements=8 * GIGA,
    base=16 * GIGA,
    base_block=GIGA // 2,
    base_outside=GIGA,
    network_elements=GIGA // 4,
    network=GIGA,
    trained=GIGA,
)
# Passes that need 3 GB, gradients on top.
STEP = StepMemory(lambda share: int(3 * GIGA + share * GIGA), {}, base_read=20 * GIGA, network_read=2 * GIGA)


def totals(processes: int) -> dict[str, float]:
    return {name: memory.total / GIGA for name, memory in memory_of_each(SIZE, STEP, processes).items()}


def test_one_gpu() -> None:
    assert totals(1)["single GPU"] == 16 + 1 + 1 + 2 + 3
    assert totals(8)["single GPU"] == totals(1)["single GPU"]


def test_eight_gpus() -> None:
    buckets = 2 * 0.2
    assert totals(8) == pytest.approx(
        {
            "single GPU": 23,
            "DDP": 24,
            "ZeRO-1": 16 + 1 + 1 + 3 / 8 + buckets + 3,
            "ZeRO-2": 16 + 1 + 1 / 8 + 3 / 8 + buckets + 3,
            "ZeRO-3": 17 / 8 + 1 / 8 + 3 / 8 + buckets + 2 + 3,
            "ZeRO-3, offload": buckets + 2 + 3,
            "FSDP": 17 / 8 + 1 / 8 + 2 / 8 + 1 + 1 + 1 + 3,
        }
    )
    assert memory_of_each(SIZE, STEP, 8)["ZeRO-3, offload"].host == (17 + 4) * GIGA / 8


def test_a_quantised_base_model_is_whole_everywhere_and_unpacked_layer_by_layer() -> None:
    packed = memory_of_each(replace(SIZE, base_unpacked=GIGA // 4), STEP, 8)
    whole = memory_of_each(SIZE, STEP, 8)
    assert list(packed) == ["single GPU", "DDP", "ZeRO-1", "ZeRO-2"]
    for name, memory in packed.items():
        assert memory.total == whole[name].total + GIGA / 4
    assert list(traffic_per_step(replace(SIZE, base_unpacked=1), STEP, 8)) == ["DDP, ZeRO-1, ZeRO-2"]


def test_gradients_that_are_complete_before_the_peak_are_not_counted_twice() -> None:
    """The program's peak holds that share of the gradients which stays; the table names it apart."""
    step = StepMemory(lambda share: int((0.1 + share) * GIGA), {}, 0, 0)
    for processes in (1, 4):
        for name, memory in memory_of_each(SIZE, step, processes).items():
            assert memory.activations == pytest.approx(GIGA / 10), name


def test_more_gpus_never_cost_more_on_each() -> None:
    for name in STRATEGIES:
        assert totals(16)[name] <= totals(2)[name]


def test_traffic() -> None:
    traffic = traffic_per_step(SIZE, STEP, 4)
    assert traffic["DDP, ZeRO-1, ZeRO-2"] == 2 * GIGA * 3 / 4
    assert traffic["ZeRO-3"] == (20 + 2 + 1) * GIGA * 3 / 4
    assert set(traffic_per_step(SIZE, STEP, 1).values()) == {0}
