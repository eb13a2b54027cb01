"""Losses over answer tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from editors.losses import locality_kl

# More answers than are worked on at once.
ANSWERS, VOCABULARY = 37, 97


def logits(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of a base model, and of an edited one with a gradient."""
    generator = torch.Generator().manual_seed(0)
    base, change = (4 * torch.randn(ANSWERS, VOCABULARY, generator=generator) for _ in range(2))
    return base.to(dtype), (base + change).to(dtype).requires_grad_()


def divergence(base: Tensor, edited: Tensor) -> Tensor:
    """The reference, of torch's own functions."""
    tables = edited.float().log_softmax(-1), base.float().log_softmax(-1)
    return functional.kl_div(*tables, reduction="none", log_target=True).sum(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_locality_kl_and_its_gradient_are_torchs(dtype: torch.dtype) -> None:
    base, edited = logits(dtype)
    weights = torch.arange(1.0, ANSWERS + 1)
    found, wanted = locality_kl(base, edited), divergence(base, edited)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad((weights * value).sum(), edited)[0] for value in (found, wanted)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)


def test_locality_kl_writes_to_neither_model() -> None:
    base, edited = logits(torch.float32)
    before = base.clone(), edited.detach().clone()
    locality_kl(base, edited).sum().backward()
    torch.testing.assert_close((base, edited.detach()), before, rtol=0, atol=0)


def test_equal_models_do_not_diverge() -> None:
    base, _ = logits(torch.float32)
    assert locality_kl(base, base.clone()).tolist() == [0.0] * ANSWERS


def test_locality_kl_keeps_one_table_of_the_vocabulary() -> None:
    base, edited = logits(torch.float32)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        locality_kl(base, edited)
    assert kept == [(ANSWERS, VOCABULARY)]
