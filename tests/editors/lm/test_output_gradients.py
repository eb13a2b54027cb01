"""Tests of `editors.lm.output_gradients`."""

from __future__ import annotations

import torch
from torch import Tensor

from editors.lm.output_gradients import output_gradients


def gradient(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of `factors * output`, one text for each factor and two tokens, through a cast to `dtype`."""
    output = torch.ones(len(factors), 2, 1, dtype=dtype, requires_grad=True)
    losses = (output.float() * factors.view(-1, 1, 1)).sum(dim=(1, 2))
    return output_gradients(losses, [output], dtype)[0]


def test_float16_gradients_keep_their_size_whatever_the_text_beside_them() -> None:
    """A scale that suits the smallest overflows for the largest."""
    factors = torch.tensor([1e-9, 1.0, 3e4, 1e-3])
    expected = factors.view(-1, 1, 1).expand(-1, 2, 1)
    torch.testing.assert_close(gradient(factors, torch.float16), expected, rtol=2e-3, atol=0)


def test_what_is_not_finite_without_a_scale_stays_so_and_alone() -> None:
    found = gradient(torch.tensor([1.0, torch.nan, 1e9]), torch.float16)
    assert torch.isfinite(found).all(dim=(1, 2)).tolist() == [True, False, False]


def test_other_types_are_left_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = gradient(torch.tensor([2.0**-40]), dtype)
        assert found.dtype == dtype
        assert (found == 2.0**-40).all()


def test_texts_may_be_flattened_into_tokens() -> None:
    """As OPT's blocks do."""
    output = torch.ones(6, 1, dtype=torch.float16, requires_grad=True)
    factors = torch.tensor([1e-9, 1.0, 3e4])
    losses = output.float().view(3, 2).sum(dim=1) * factors
    (found,) = output_gradients(losses, [output], torch.float16)
    torch.testing.assert_close(found, factors.repeat_interleave(2).view(6, 1), rtol=2e-3, atol=0)


def test_a_float32_layer_of_a_float16_model_gets_what_comes_down_through_float16() -> None:
    output = torch.ones(2, 1, 1, requires_grad=True)
    factors = torch.tensor([1e-9, 1.0])
    losses = output.half().float().flatten() * factors
    (found,) = output_gradients(losses, [output], torch.float16)
    torch.testing.assert_close(found.flatten(), factors, rtol=2e-3, atol=0)
