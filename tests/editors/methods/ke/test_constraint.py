"""Tests of KE's constraints: the multiplier's sign, its floor, the margin's course, the norm from factors."""

from __future__ import annotations

import pytest
import torch

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.methods.ke.constraint import Constraint, Margin, update_norm
from tests.tiny_models import random_edit


@pytest.mark.parametrize(("value", "direction"), [(0.5, 1), (0.1, -1)])
def test_descent_on_the_penalty_raises_the_multiplier_above_the_margin_and_lowers_it_below(
    value: float, direction: int
) -> None:
    constraint = Constraint(Margin(0.2, 0.1))
    quantity = torch.tensor(value, requires_grad=True)
    penalty = constraint(quantity)
    assert penalty.item() == pytest.approx(value - 0.2)
    penalty.backward()
    assert quantity.grad == pytest.approx(1.0)
    torch.optim.SGD(constraint.parameters(), lr=1.0).step()
    assert constraint.multiplier.item() == pytest.approx(1 + direction * abs(value - 0.2))


def test_multiplier_has_a_dimension_and_stays_at_or_above_zero() -> None:
    constraint = Constraint(Margin(0.2, 0.1))
    assert constraint.multiplier.shape == (1,)
    with torch.no_grad():
        constraint.multiplier.fill_(-0.3)
    constraint.clamp()
    assert constraint.multiplier.item() == 0
    constraint(torch.tensor(0.5)).backward()
    torch.optim.SGD(constraint.parameters(), lr=1.0).step()
    assert constraint.multiplier.item() > 0, "it must be able to come back"


def test_margin_is_tightened_down_to_its_end_and_saved() -> None:
    constraint = Constraint(Margin(0.2, 0.15))
    constraint.tighten(0.8)
    assert constraint.margin.item() == pytest.approx(0.16)
    other = Constraint(Margin(0.2, 0.15))
    other.load_state_dict(constraint.state_dict())
    other.tighten(0.8)
    assert other.margin.item() == pytest.approx(0.15)


@pytest.mark.parametrize(("start", "end"), [(0.1, 0.2), (0.1, 0.0), (-1.0, -2.0)])
def test_margin_must_shrink_and_stay_positive(start: float, end: float) -> None:
    with pytest.raises(EditorError, match=r"a margin .*kl_margin.* needs 0 < end <= start, got start"):
        Margin(start, end)


def test_norm_from_factors_equals_that_of_the_full_update() -> None:
    edit = random_edit({"a": (5, 7), "b": (7, 3)}, num_episodes=4)
    full = [up.weight_delta(e).square().mean().sqrt() for up in edit.updates.values() for e in range(4)]
    torch.testing.assert_close(update_norm(edit), torch.stack(full).mean(), rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(update_norm(edit), torch.stack(full).mean(), rtol=1e-6, atol=1e-7)


def test_norm_of_no_update_is_zero_and_has_a_finite_slope() -> None:
    u = torch.zeros(2, 3, 4, requires_grad=True)
    norm = update_norm(LowRankEdit({"a": SiteUpdate(u, torch.ones(2, 3, 5))}))
    norm.backward()
    assert norm.item() < 1e-15
    assert u.grad is not None
    assert u.grad.isfinite().all()
