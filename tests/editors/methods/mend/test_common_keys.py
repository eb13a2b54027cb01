"""What ordinary keys have in common is damped in an edit's."""

from __future__ import annotations

import pytest
import torch

from editors.common.errors import EditorError
from editors.lm.input_moments import InputMoments
from editors.methods.mend.common_keys import CommonKeys
from editors.methods.mend.network import MENDConfig

WIDTH = 12


def ordinary_keys() -> torch.Tensor:
    """`[400, 12]`: two directions are strong in all of them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(400, WIDTH, generator=generator) * torch.tensor([20.0, 5.0] + [0.3] * (WIDTH - 2))


def measured(rank: int, ridge: float = 0.01) -> tuple[CommonKeys, InputMoments]:
    keys = ordinary_keys()
    moments = InputMoments(keys.mT @ keys / len(keys), keys.square().sum(dim=1).median())
    common = CommonKeys(WIDTH, rank)
    common.measure(moments, ridge)
    return common, moments


def test_it_is_the_inverse_root_of_the_second_moment() -> None:
    common, moments = measured(rank=WIDTH)
    floor = 0.01 * moments.median_square
    wanted = torch.linalg.inv(moments.second / floor + torch.eye(WIDTH))
    twice = common(common(torch.eye(WIDTH))) / common.gain**2
    torch.testing.assert_close(twice, wanted, rtol=1e-3, atol=1e-5)


def test_the_strongest_directions_are_enough() -> None:
    full, few = measured(rank=WIDTH)[0], measured(rank=2)[0]
    keys = ordinary_keys()[None, :5]
    assert few.directions.shape == (2, WIDTH)
    torch.testing.assert_close(full(keys) / full.gain, few(keys) / few.gain, rtol=0.1, atol=0.05)


def test_an_ordinary_key_keeps_its_length_and_loses_what_is_common() -> None:
    common, _ = measured(rank=WIDTH)
    before = ordinary_keys()
    after = common(before)
    torch.testing.assert_close(after.square().sum(dim=1).mean(), before.square().sum(dim=1).mean(), rtol=0.01, atol=0.0)
    share = before[:, 0].square().mean() / before.square().sum(dim=1).mean()
    assert after[:, 0].square().mean() / after.square().sum(dim=1).mean() < 0.7 * share


def test_unmeasured_it_changes_nothing() -> None:
    keys = ordinary_keys()
    assert torch.equal(CommonKeys(WIDTH, 4)(keys), keys)


@pytest.mark.parametrize(
    ("setting", "message"), [("common_ridge", "must be above 0"), ("common_rank", "must be at least 1")]
)
def test_wrong_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(EditorError, match=f"{setting} {message}"):
        MENDConfig(**{setting: 0})  # type: ignore[arg-type]
