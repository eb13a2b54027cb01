"""Tests of `MemoryTrace`: it counts what lives, and computes with shapes what a real run computes with values."""

from __future__ import annotations

import torch
from torch import nn

from editors.training.plan.trace import MemoryTrace

FLOAT = 4


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_what_lives_together_is_counted_and_what_is_freed_is_not() -> None:
    x = on_meta(100)
    with MemoryTrace() as trace:
        y = x * 2  # 100 floats live
        z = y + 1  # 200
        del y  # 100
        z = z.sum()  # 101, then 1
    assert trace.peak() == 200 * FLOAT
    assert trace.live == {"rest": FLOAT}
    assert z.shape == ()


def test_views_and_results_in_place_take_no_memory() -> None:
    x = on_meta(10, 10)
    with MemoryTrace() as trace:
        y = x + 1
        views = [y.T, y.reshape(100), y[2:]]
        y.add_(1)
    assert trace.peak() == 100 * FLOAT
    assert len(views) == 3


def test_phases_tell_what_the_peak_is_made_of() -> None:
    x = on_meta(100)
    with MemoryTrace() as trace:
        with trace.phase("first"):
            y = x + 1
            with trace.phase("second"):
                z = torch.cat([y, y])
        w = z[:1] + 1
    assert trace.parts_at_peak() == {"first": 400, "second": 800, "rest": 4, "gradients": 0}
    assert w.numel() == 1


def test_weights_are_not_counted_and_their_complete_gradients_apart() -> None:
    layers = nn.Sequential(*(nn.Linear(20, 20, bias=False, device="meta") for _ in range(2)))
    x, weights = on_meta(5, 20), 20 * 20 * FLOAT
    with MemoryTrace(layers) as trace:
        loss = layers(x).sum()
        assert trace.peak() < weights
        with trace.backward():
            loss.backward()
    # At the peak one gradient is complete and the other has just been computed.
    assert weights < trace.peak(0) < 2 * weights < trace.peak(1)
    assert trace.peak(0) <= trace.peak(0.5) < trace.peak(1) <= trace.peak(0) + weights
    assert trace.parts_at_peak()["gradients"] == weights
    assert all(layer.weight.grad is not None and layer.weight.grad.is_meta for layer in layers.children())
