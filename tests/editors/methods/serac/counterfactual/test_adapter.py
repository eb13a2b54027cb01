"""The adapter as an edit of two episodes."""

from __future__ import annotations

import torch

from editors.methods.serac.counterfactual.adapter import LowRankAdapter


def test_the_adapter_is_off_in_episode_0_and_at_the_start() -> None:
    adapter = LowRankAdapter({"a.b": (5, 7), "a.c": (7, 5)}, rank=2)
    assert not adapter.edit().updates["a.b"].weight_delta(1).any()
    with torch.no_grad():
        adapter.up["a#b"].normal_()
    update = adapter.edit().updates["a.b"]
    assert not update.weight_delta(0).any()
    torch.testing.assert_close(update.weight_delta(1), adapter.down["a#b"].mT @ adapter.up["a#b"])
    assert torch.linalg.matrix_rank(update.weight_delta(1)) == 2
    update.weight_delta(1).sum().backward()
    assert adapter.down["a#b"].grad is not None
