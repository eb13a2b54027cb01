"""Keys of one edit that leave one another alone (pure torch)."""

from __future__ import annotations

import pytest
import torch

from editors.common.errors import EditorError
from editors.methods.mend.keys import decorrelated_keys
from editors.methods.mend.network import MENDConfig


def alike_keys() -> torch.Tensor:
    """`[2, 4, 16]`: rows that share most of their direction; the second episode has two rows only."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 1, 16, generator=generator) + 0.3 * torch.randn(2, 4, 16, generator=generator)
    keys[1, 2:] = 0
    return keys.double()


def cross_talk(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """What a query gets of other rows, as a part of what it gets of its own."""
    products = queries @ keys.mT
    own = products.diagonal().abs()
    return float(((products.abs().sum(dim=1) - own) / own).mean())


def test_solves_the_normal_equations_of_ridge_regression() -> None:
    keys, ridge = alike_keys(), 0.2
    solved = decorrelated_keys(keys, ridge)
    for episode, count in ((0, 4), (1, 2)):
        rows = keys[episode, :count]
        mean = rows.square().sum(dim=1).mean()
        # K^T (K K^T + c I)^-1 = (K^T K + c I)^-1 K^T: the form with a matrix of the keys' width.
        covariance = rows.T @ rows + ridge * mean * torch.eye(16, dtype=rows.dtype)
        expected = (1 + ridge) * mean * torch.linalg.inv(covariance) @ rows.T
        torch.testing.assert_close(solved[episode, :count], expected.T)
        assert not solved[episode, count:].any()


def test_rows_disturb_one_another_the_less_the_smaller_the_ridge() -> None:
    keys = alike_keys()[0]
    talk = [cross_talk(keys, keys)]
    talk += [cross_talk(keys, decorrelated_keys(keys[None], ridge)[0]) for ridge in (1.0, 0.1, 0.01)]
    assert talk == sorted(talk, reverse=True)
    assert talk[0] > 2
    assert talk[-1] < 0.1


def test_single_rows_and_large_ridges_change_nothing() -> None:
    keys = alike_keys()
    torch.testing.assert_close(decorrelated_keys(keys, 1e9), keys, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(decorrelated_keys(keys[:, :1], 0.1), keys[:, :1])


def test_an_episode_without_rows_has_finite_values_and_gradients() -> None:
    keys = torch.zeros(2, 3, 5)
    keys[0] = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    keys.requires_grad_()
    solved = decorrelated_keys(keys, 0.1)
    (gradient,) = torch.autograd.grad(solved.square().sum(), keys)
    assert gradient.isfinite().all()
    assert not solved[1].any()


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda keys: decorrelated_keys(keys, 0.3), alike_keys()[:1].requires_grad_())


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_ridges_out_of_range_are_refused(ridge: float) -> None:
    with pytest.raises(EditorError, match="key_ridge must be above 0"):
        MENDConfig(key_ridge=ridge)
