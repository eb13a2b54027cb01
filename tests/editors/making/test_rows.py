"""Tests of `editors.making.rows`, against loops over tokens."""

from __future__ import annotations

import torch

from editors.lm.signal import Factors
from editors.making.rows import gradient_places, gradient_rows, pad_episodes


def factors(texts: int, tokens: int, d_in: int, d_out: int, seed: int) -> Factors:
    """Factors in half precision, some of whose tokens have no input or no gradient."""
    generator = torch.Generator().manual_seed(seed)
    u, delta = (torch.randn(texts, tokens, width, generator=generator) for width in (d_in, d_out))
    u[torch.rand(texts, tokens, generator=generator) < 0.3] = 0
    delta[torch.rand(texts, tokens, generator=generator) < 0.3] = 0
    return Factors(u.bfloat16(), delta.bfloat16())


def test_rows_are_the_tokens_with_input_and_gradient_in_order() -> None:
    # As in an encoder-decoder model: sites that see texts of different lengths.
    sites = {"encoder": factors(3, 5, 4, 2, seed=0), "decoder": factors(3, 2, 2, 6, seed=1)}
    places = gradient_places(sites)
    assert list(places) == list(sites)
    for site, own in sites.items():
        wanted = [
            (b, t) for b in range(3) for t in range(own.u.shape[1]) if own.u[b, t].any() and own.delta[b, t].any()
        ]
        assert 0 < len(wanted) < own.u.shape[0] * own.u.shape[1]
        u, delta, text = gradient_rows(own, places[site])
        assert u.dtype == delta.dtype == torch.float32
        assert text.tolist() == [b for b, _ in wanted]
        assert torch.equal(u, torch.stack([own.u[b, t].float() for b, t in wanted]))
        assert torch.equal(delta, torch.stack([own.delta[b, t].float() for b, t in wanted]))


def test_each_update_is_padded_to_its_own_largest_episode() -> None:
    episodes = [[0, 2, 2, 2], [1], []]
    parts = [
        (torch.arange(1.0, 1 + 2 * len(own)).view(-1, 2), torch.ones(len(own), 3), torch.tensor(own, dtype=torch.long))
        for own in episodes
    ]
    first, second, empty = pad_episodes(parts, num_episodes=3)
    assert first.u.tolist() == [[[1, 2], [0, 0], [0, 0]], [[0, 0]] * 3, [[3, 4], [5, 6], [7, 8]]]
    assert first.v.sum(dim=2).tolist() == [[3, 0, 0], [0, 0, 0], [3, 3, 3]]
    assert second.u.tolist() == [[[0, 0]], [[1, 2]], [[0, 0]]]
    assert empty.u.shape == (3, 1, 2)
    assert not empty.u.any()


def test_gradients_flow_through_padding() -> None:
    u = torch.randn(3, 2, requires_grad=True)
    (update,) = pad_episodes([(u, torch.randn(3, 1), torch.tensor([0, 1, 1]))], num_episodes=2)
    update.u.sum().backward()
    assert u.grad is not None
    assert torch.equal(u.grad, torch.ones(3, 2))
