"""Running a model without values: what is known decides, and what is not needs the most memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from editors.base_models.without_values import WithoutValues, skeleton_of
from tests.tiny_models import tiny_model


def on_meta(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")


def test_a_skeleton_has_the_shapes_and_nothing_of_the_model() -> None:
    model = tiny_model("gpt2")
    skeleton = skeleton_of(model)
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(p.is_meta for p in skeleton.parameters())
    assert skeleton.config is not model.config
    assert not skeleton.training


def test_known_values_decide_and_unknown_ones_need_the_most_memory() -> None:
    x = on_meta(3, 4)
    mask = torch.tensor([True, False, True])
    with WithoutValues():
        assert x[mask].shape == (2, 4)
        everything = (x != 0).any(dim=-1)
        assert everything.tolist() == [True] * 3
        assert x[everything].shape == (3, 4)
        assert x.argmax(dim=1).tolist() == [0, 0, 0]
        assert float(x.sum()) == 0
        filled = torch.zeros(3, 4, device="meta").index_put((mask,), on_meta(2, 4))
        assert filled.shape == (3, 4)


def test_a_recurrent_network_reads_lengths_from_the_cpu() -> None:
    lstm = nn.LSTM(4, 6, batch_first=True, device="meta")
    x, lengths = on_meta(2, 5, 4), torch.tensor([5, 3])
    with WithoutValues():
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        assert packed.data.shape == (8, 4)
        _, (state, _) = lstm(packed)
    assert state.shape == (1, 2, 6)
