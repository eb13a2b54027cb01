"""The mixture of two models."""

from __future__ import annotations

import pytest
import torch

from editors.methods.serac.counterfactual.interface import mix


def test_mixture_of_probabilities() -> None:
    base, other = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    score = torch.tensor([0.2, 0.5, 0.97])
    wanted = (1 - score).unsqueeze(1) * base.softmax(-1) + score.unsqueeze(1) * other.softmax(-1)
    torch.testing.assert_close(mix(base, other, score.log()).exp(), wanted)
    torch.testing.assert_close(mix(base, base + 3.0, score.log()), base.log_softmax(-1))


@pytest.mark.parametrize(("log_score", "which"), [(0.0, 1), (-torch.inf, 0)])
def test_mixture_at_the_ends_is_one_model(log_score: float, which: int) -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    mixed = mix(logits[0], logits[1], torch.full((3,), log_score))
    torch.testing.assert_close(mixed.exp(), logits[which].softmax(-1), rtol=1e-4, atol=1e-6)


def test_mixture_has_finite_gradients_at_score_1() -> None:
    logits = torch.randn(2, 3, 9, requires_grad=True)
    log_score = torch.zeros(3, requires_grad=True)
    mix(logits[0], logits[1], log_score).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert log_score.grad is not None
    assert log_score.grad.isfinite().all()
