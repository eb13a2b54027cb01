"""Updates of one layer joined: each does what it did alone."""

from __future__ import annotations

import pytest
import torch

from editors.edits.joining import RIDGE, added, joined
from editors.edits.protocol import SiteUpdate

D_IN, D_OUT = 24, 10


def update(seed: int, rank: int = 3, episodes: int = 2, common: float = 2.0) -> SiteUpdate:
    """An update whose rows have most of their direction in common with those of every other."""
    generator = torch.Generator().manual_seed(seed)
    shared = common * torch.ones(D_IN) / D_IN**0.5
    u = shared + torch.randn(episodes, rank, D_IN, generator=generator) / D_IN**0.5
    return SiteUpdate(u, torch.randn(episodes, rank, D_OUT, generator=generator))


def error(parts: list[SiteUpdate], together: SiteUpdate) -> float:
    """How far rows of the parts are answered otherwise than by their own, as a part of what that answers."""
    off, size = 0.0, 0.0
    for part in parts:
        for e in range(len(part.u)):
            wanted = part.u[e] @ part.weight_delta(e)
            off += float((part.u[e] @ together.weight_delta(e) - wanted).square().sum())
            size += float(wanted.square().sum())
    return (off / size) ** 0.5


def test_each_row_gets_what_its_own_update_gave_it() -> None:
    parts = [update(seed) for seed in range(5)]
    assert error(parts, added(parts)) > 1
    assert error(parts, joined(parts)) < 0.15


@pytest.mark.parametrize("count", [4, 20])
def test_it_solves_the_normal_equations(count: int) -> None:
    """With fewer rows than the layer is wide, and with more."""
    parts = [update(seed, episodes=1) for seed in range(count)]
    together = joined(parts)
    u = added(parts).u[0].double()
    wanted = torch.cat([part.u[0].double() @ part.weight_delta().double() for part in parts])
    ridge = RIDGE * u.square().sum(dim=1).mean() * torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(u.mT @ u + ridge, u.mT @ wanted)
    torch.testing.assert_close(together.weight_delta().double(), expected, rtol=1e-3, atol=1e-3)


def test_updates_that_share_nothing_add_up() -> None:
    basis = torch.eye(D_IN)
    parts = [SiteUpdate(basis[None, 3 * n : 3 * n + 3], torch.randn(1, 3, D_OUT)) for n in range(3)]
    torch.testing.assert_close(joined(parts).weight_delta(), added(parts).weight_delta() / (1 + RIDGE))


def test_the_same_update_twice_is_itself_not_its_double() -> None:
    one = update(0, episodes=1)
    torch.testing.assert_close(joined([one, one]).weight_delta(), one.weight_delta(), rtol=0.05, atol=0.05)


def test_one_update_stays_as_it_is() -> None:
    one = update(0)
    assert torch.equal(joined([one]).u, one.u)
    assert torch.equal(joined([one]).v, one.v)


def test_an_episode_without_rows_stays_without() -> None:
    parts = [update(0), update(1)]
    for part in parts:
        part.u[1] = 0
    together = joined(parts)
    assert together.v.isfinite().all()
    assert not together.weight_delta(1).any()
