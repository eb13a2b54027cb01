"""Losses over answer tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from editors.lm.losses import largest_change, locality_kl

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


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_locality_kl_and_its_gradient_are_torchs(dtype: torch.dtype, overwrite: bool) -> None:
    base, edited = logits(dtype)
    weights = torch.arange(1.0, ANSWERS + 1)
    wanted = divergence(base, edited)
    found = locality_kl(base.clone(), edited, overwrite=overwrite)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad((weights * value).sum(), edited)[0] for value in (found, wanted)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)


def test_locality_kl_writes_to_neither_model() -> None:
    base, edited = logits(torch.float32)
    before = base.clone(), edited.detach().clone()
    locality_kl(base, edited).sum().backward()
    torch.testing.assert_close((base, edited.detach()), before, rtol=0, atol=0)


def test_locality_kl_needs_no_new_table_where_it_may_overwrite_the_base_models() -> None:
    base, edited = logits(torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda _: edited):
        locality_kl(base, edited, overwrite=True)
    assert kept == [base.data_ptr()]


def test_the_largest_change_may_be_anywhere() -> None:
    base, _ = logits(torch.float32)
    for answer in range(ANSWERS):
        edited = base + 0.5
        edited[answer, answer] -= 3
        assert largest_change(base, edited) == pytest.approx(2.5, rel=1e-5)


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
