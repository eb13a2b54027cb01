"""Tests of MEND's hypernetwork against a loop written from the paper's equations (Mitchell et al. 2022, section 3)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.lm.signal import Factors
from editors.making.normaliser import RunningNormaliser
from editors.methods.mend.keys import decorrelated_keys
from editors.methods.mend.network import FactorTransform, LowRankBlock, MENDConfig, MENDNetwork
from tests.tiny_models import as_signal

Mode = Literal["combined", "separate", "one_sided", "u_only", "delta_only"]
MODES: tuple[Mode, ...] = get_args(Mode)

# Two shapes, interleaved, as gate, up and down projections are.
WIDTHS = {"a.gate": (4, 6), "a.up": (4, 6), "a.down": (6, 4), "b.gate": (4, 6), "b.down": (6, 4)}
EPISODE = torch.tensor([0, 0, 1, 3])
NUM_EPISODES = 5
TOKENS = 7
# Real tokens of each text and how many of them are padding on the left; episodes 2 and 4 have no text at all.
SPANS = ((0, 7), (3, 7), (0, 2), (2, 5))
OPTIONS = [(mode, shared, normalise) for mode in MODES for shared in (True, False) for normalise in (True, False)]


def config(**changes: Any) -> MENDConfig:
    """A small hypernetwork."""
    return dataclasses.replace(MENDConfig(rank=3, edit_rate=0.1), **changes)


def random_factors(seed: int = 0) -> dict[str, Factors]:
    """Factors that are zero at padding; the gradient is zero also at the last token and at places of its own."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for index, (site, (d_in, d_out)) in enumerate(WIDTHS.items()):
        u = torch.randn(len(SPANS), TOKENS, d_in, generator=generator) * 2 + 0.5
        delta = torch.randn(len(SPANS), TOKENS, d_out, generator=generator) * 0.1
        for text, (start, end) in enumerate(SPANS):
            u[text, :start] = u[text, end:] = 0
            delta[text, :start] = delta[text, end - 1 :] = 0
        # As in the last block, where only predicting positions have a gradient.
        delta[0, : index % 3] = 0
        # An activation may leave a row at zero that has a gradient all the same.
        u[1, 4 + index % 2] = 0
        factors[site] = Factors(u, delta)
    return factors


def new_network(**changes: Any) -> MENDNetwork:
    """A small hypernetwork, always with the same initial values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MENDNetwork(WIDTHS, config(**changes))


def transform_of(network: MENDNetwork, key: str) -> FactorTransform:
    """The transform of one shape or site."""
    transform = network.transforms[key]
    assert isinstance(transform, FactorTransform)
    return transform


def normalisers_of(network: MENDNetwork, key: str) -> tuple[RunningNormaliser, RunningNormaliser]:
    """The normalisers of `u` and of `delta` of one shape or site."""
    transform = transform_of(network, key)
    assert transform.normalise_u is not None
    assert transform.normalise_delta is not None
    return transform.normalise_u, transform.normalise_delta


def blocks_of(stack: nn.Module | None) -> list[LowRankBlock]:
    """The blocks of one stack."""
    assert stack is not None
    return [block for block in stack.modules() if isinstance(block, LowRankBlock)]


def randomised(network: MENDNetwork, seed: int = 0) -> MENDNetwork:
    """The same network with every parameter moved away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network


def warmed_up(network: MENDNetwork, seed: int = 9) -> MENDNetwork:
    """The same network in eval mode with normaliser statistics from random rows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, RunningNormaliser):
            module.update(torch.randn(20, len(module.mean), generator=generator) * 0.7 + 0.2)
    return network.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    """Assert that two tensors agree to 1e-5."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def close_in_scale(actual: Tensor, expected: Tensor) -> None:
    """Assert that two tensors agree to 1e-5 of their largest value."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 * max(1.0, scale))


# --- a naive reference -----------------------------------------------------------------------------------------------


def naive_stack(blocks: Sequence[LowRankBlock], h: Tensor, mode: int) -> Tensor:
    """Blocks applied to one vector: `h + max(0, s * (U V h + b) + t)`."""
    for block in blocks:
        inner = block.scale[mode] * (block.u @ (block.v @ h) + block.bias) + block.shift[mode]
        h = h + torch.where(inner >= 0, inner, torch.zeros_like(inner))
    return h


def naive_normalise(normaliser: RunningNormaliser | None, row: Tensor) -> Tensor:
    """One row with the statistics as they stand."""
    if normaliser is None:
        return row
    std = (normaliser.squared_deviation / (normaliser.count - 1)).sqrt()
    return (row - normaliser.mean) / (std + 1e-7)


def naive_transform(transform: FactorTransform, mode: Mode, index: int, u: Tensor, delta: Tensor) -> Tensor:
    """`u~ delta~^T` of one row."""
    u, delta = naive_normalise(transform.normalise_u, u), naive_normalise(transform.normalise_delta, delta)
    if mode == "one_sided":
        mode = "delta_only" if len(u) > len(delta) else "u_only"
    if mode == "combined":
        h = naive_stack(blocks_of(transform.joint), torch.cat([u, delta]), index)
        return torch.outer(h[: len(u)], h[len(u) :])
    if mode in ("separate", "u_only"):
        u = naive_stack(blocks_of(transform.u_net), u, index)
    if mode in ("separate", "delta_only"):
        delta = naive_stack(blocks_of(transform.delta_net), delta, index)
    return torch.outer(u, delta)


def naive_update(network: MENDNetwork, factors: dict[str, Factors], site: str, episode: int) -> Tensor:
    """`[d_in, d_out]`: `-rate * sum over tokens of u~ delta~^T` of one episode at one site."""
    shared = network.config.shared
    d_in, d_out = WIDTHS[site]
    key = f"{d_in}x{d_out}" if shared else site.replace(".", "#")
    alike = [name for name in WIDTHS if WIDTHS[name] == WIDTHS[site]]
    total = torch.zeros(d_in, d_out, dtype=torch.float64)
    for text in range(len(EPISODE)):
        for token in range(TOKENS):
            u, delta = factors[site].u[text, token], factors[site].delta[text, token]
            if EPISODE[text] == episode and u.any() and delta.any():
                index = alike.index(site) if shared else 0
                total = total + naive_transform(transform_of(network, key), network.config.mode, index, u, delta)
    return -network.edit_rates[list(WIDTHS).index(site)] * total


@pytest.mark.parametrize(("mode", "shared", "normalise"), OPTIONS)
def test_equals_the_equations_token_by_token(mode: Mode, shared: bool, normalise: bool) -> None:
    network = warmed_up(randomised(new_network(mode=mode, shared=shared, normalise=normalise)))
    factors = random_factors()
    edit = network(as_signal(factors, EPISODE, NUM_EPISODES))
    actual = torch.cat([edit.updates[s].weight_delta(e).flatten() for s in WIDTHS for e in range(NUM_EPISODES)])
    exact = copy.deepcopy(network).double()
    doubled = {site: Factors(f.u.double(), f.delta.double()) for site, f in factors.items()}
    expected = torch.cat([naive_update(exact, doubled, s, e).flatten() for s in WIDTHS for e in range(NUM_EPISODES)])
    close_in_scale(actual, expected)
    assert expected.abs().max() > 0.1, "a vanishing edit would prove nothing"

    weights = torch.randn(len(actual), generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((actual * weights).sum(), list(network.parameters()))
    naive = torch.autograd.grad((expected * weights).sum(), list(exact.parameters()))
    for gradient, reference in zip(gradients, naive, strict=True):
        close_in_scale(gradient, reference)


def test_the_summed_loss_counts_every_token_of_a_long_target_in_full() -> None:
    lengths = torch.tensor([2, 1, 3, 1])
    factors = random_factors()
    signal = as_signal(factors, EPISODE, NUM_EPISODES)
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    signal = dataclasses.replace(signal, tokens=dataclasses.replace(signal.tokens, rows=rows))
    summed = warmed_up(randomised(new_network(answer_loss="sum")))(signal)
    scaled = {site: Factors(f.u, f.delta * lengths.view(-1, 1, 1)) for site, f in factors.items()}
    expected = warmed_up(randomised(new_network()))(as_signal(scaled, EPISODE, NUM_EPISODES))
    for site in WIDTHS:
        close(summed.updates[site].u, expected.updates[site].u)
        close(summed.updates[site].v, expected.updates[site].v)


@pytest.mark.parametrize("answer_loss", ["mean", "sum"])
def test_a_ridge_changes_the_keys_of_every_site_and_nothing_else(answer_loss: Literal["mean", "sum"]) -> None:
    signal = as_signal(random_factors(), EPISODE, NUM_EPISODES)
    plain = warmed_up(randomised(new_network(answer_loss=answer_loss)))(signal)
    joint = warmed_up(randomised(new_network(answer_loss=answer_loss, key_ridge=0.2)))(signal)
    for site in WIDTHS:
        close(joint.updates[site].u, decorrelated_keys(plain.updates[site].u, 0.2))
        close(joint.updates[site].v, plain.updates[site].v)
        assert not torch.allclose(joint.updates[site].u, plain.updates[site].u, rtol=0.01)


def test_training_normalises_with_this_batch_included() -> None:
    factors = random_factors()
    trained, warm = new_network(), new_network()
    edit = trained.train()(as_signal(factors, EPISODE, NUM_EPISODES))
    for key in warm.transforms:
        normalise_u, normalise_delta = normalisers_of(warm, key)
        alike = [site for site, widths in WIDTHS.items() if "{}x{}".format(*widths) == key]
        kept = [(f.u != 0).any(-1) & (f.delta != 0).any(-1) for f in (factors[site] for site in alike)]
        normalise_u.update(torch.cat([factors[s].u[k] for s, k in zip(alike, kept, strict=True)]))
        normalise_delta.update(torch.cat([factors[s].delta[k] for s, k in zip(alike, kept, strict=True)]))
    for name, buffer in trained.named_buffers():
        close(buffer, warm.get_buffer(name))
    warm.load_state_dict({**warm.state_dict(), **dict(trained.named_parameters())})
    expected = warm.eval()(as_signal(factors, EPISODE, NUM_EPISODES))
    for site in WIDTHS:
        close(edit.updates[site].u, expected.updates[site].u)
        close(edit.updates[site].v, expected.updates[site].v)


# --- initial state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_starts_as_the_identity_on_normalised_factors(mode: Mode) -> None:
    network = warmed_up(new_network(mode=mode))
    for (d_in, d_out), site in {(4, 6): "a.up", (6, 4): "b.down"}.items():
        transform = transform_of(network, f"{d_in}x{d_out}")
        normalise_u, normalise_delta = normalisers_of(network, f"{d_in}x{d_out}")
        u, delta = random_factors()[site].u.flatten(0, 1), random_factors()[site].delta.flatten(0, 1)
        new_u, new_delta = transform(u, delta, torch.zeros(len(u), dtype=torch.long))
        assert torch.equal(new_u, normalise_u(u))
        assert torch.equal(new_delta, normalise_delta(delta))


def test_starts_as_a_gradient_step_without_normalisation() -> None:
    factors = random_factors()
    edit = new_network(normalise=False)(as_signal(factors, EPISODE, NUM_EPISODES))
    for site, f in factors.items():
        for episode in range(NUM_EPISODES):
            rows = episode == EPISODE
            gradient = torch.einsum("bti,bto->io", f.u[rows], f.delta[rows])
            close(edit.updates[site].weight_delta(episode), -0.1 * gradient)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared", [True, False])
def test_a_gradient_reaches_every_parameter_of_a_fresh_network(mode: Mode, shared: bool) -> None:
    """`U = 0` blocks the gradient of `V` and of later scales; one step opens the way."""
    network = new_network(mode=mode, shared=shared)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    reached: set[str] = set()
    for seed in range(4):
        edit = network(as_signal(random_factors(seed), EPISODE, NUM_EPISODES))
        deltas = torch.cat([update.weight_delta(e).flatten() for update in edit.updates.values() for e in range(4)])
        (deltas * torch.randn(len(deltas), generator=torch.Generator().manual_seed(seed))).sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        assert len(grads) == len(list(network.parameters()))
        assert all(grad.isfinite().all() for grad in grads.values())
        reached |= {name for name, grad in grads.items() if grad.any()}
        if seed == 0:
            assert {n for n in grads if not n.endswith((".v", ".scale"))} <= reached, "blocked at the clamp"
        optimiser.step()
        optimiser.zero_grad()
    assert reached == set(dict(network.named_parameters()))


def test_the_clamp_lets_a_gradient_through_at_zero() -> None:
    block = LowRankBlock(width=3, rank=2, num_sites=1)
    block(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)).sum().backward()
    assert block.bias.grad is not None
    close(block.bias.grad, torch.full((3,), 4.0))


def random_block_and_rows() -> tuple[LowRankBlock, Tensor, Tensor]:
    """A block of three sites with random weights, `h` `[N, D]` and `site` `[N]`."""
    generator = torch.Generator().manual_seed(0)
    block = LowRankBlock(width=5, rank=3, num_sites=3).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    h = torch.randn(8, 5, generator=generator).double().requires_grad_()
    return block, h, torch.tensor([0, 0, 2, 2, 2, 0, 1, 2])


def test_a_block_has_the_gradients_of_torchs_own_functions() -> None:
    block, h, site = random_block_and_rows()
    low_rank = torch.nn.functional.linear(torch.nn.functional.linear(h, block.v), block.u, block.bias)
    expected = h + (block.scale[site] * low_rank + block.shift[site]).clamp(min=0)
    found = block(h, site)
    assert 0 < (found == h).double().mean() < 1, "the clamp must have let some through"
    close(found, expected)
    weights = torch.arange(40.0).double().reshape(8, 5)
    wanted, own = (torch.autograd.grad((weights * y).sum(), [h, *block.parameters()]) for y in (expected, found))
    for one, other in zip(own, wanted, strict=True):
        close(one, other)


def test_a_block_keeps_two_tensors_of_full_width() -> None:
    block, h, site = random_block_and_rows()
    kept: dict[int, tuple[int, ...]] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(h, site)
    assert sum(shape == h.shape for shape in kept.values()) == 2


def test_the_clamp_is_on_the_last_block_too() -> None:
    transform = FactorTransform(3, 2, 1, config(normalise=False))
    with torch.no_grad():
        blocks_of(transform.joint)[-1].bias.fill_(-5)
    u, delta = torch.randn(6, 3), torch.randn(6, 2)
    new_u, new_delta = transform(u, delta, torch.zeros(6, dtype=torch.long))
    assert torch.equal(new_u, u)
    assert torch.equal(new_delta, delta)


# --- options ---------------------------------------------------------------------------------------------------------


def test_modes_are_those_of_the_configuration() -> None:
    assert get_args(get_type_hints(MENDConfig)["mode"]) == MODES


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("combined", {"4x6": {"joint"}, "6x4": {"joint"}}),
        ("separate", {"4x6": {"u_net", "delta_net"}, "6x4": {"u_net", "delta_net"}}),
        ("one_sided", {"4x6": {"u_net"}, "6x4": {"delta_net"}}),
        ("u_only", {"4x6": {"u_net"}, "6x4": {"u_net"}}),
        ("delta_only", {"4x6": {"delta_net"}, "6x4": {"delta_net"}}),
    ],
)
def test_each_mode_builds_its_own_networks(mode: Mode, expected: dict[str, set[str]]) -> None:
    names = {"joint", "u_net", "delta_net"}
    transforms = new_network(mode=mode).transforms
    assert {key: names & set(dict(t.named_children())) for key, t in transforms.items()} == expected


def test_shared_sites_share_weights_and_differ_in_scale_and_shift() -> None:
    network = new_network()
    assert set(network.transforms) == {"4x6", "6x4"}
    assert [len(blocks_of(transform_of(network, key))[0].scale) for key in ("4x6", "6x4")] == [3, 2]
    warmed_up(network)
    f = random_factors()["a.gate"]
    same = {site: f for site in WIDTHS if WIDTHS[site] == (4, 6)}
    with torch.no_grad():
        blocks_of(transform_of(network, "4x6"))[0].shift[1] += 1
    edit = network(as_signal({**random_factors(), **same}, EPISODE, NUM_EPISODES))
    assert torch.equal(edit.updates["a.gate"].u, edit.updates["b.gate"].u)
    assert not torch.equal(edit.updates["a.gate"].u, edit.updates["a.up"].u)


def test_separate_sites_have_weights_and_statistics_of_their_own() -> None:
    network = new_network(shared=False)
    assert set(network.transforms) == {site.replace(".", "#") for site in WIDTHS}
    network(as_signal(random_factors(), EPISODE, NUM_EPISODES))
    gate, up = (normalisers_of(network, key)[0].mean for key in ("a#gate", "a#up"))
    assert not torch.equal(gate, up)


def test_each_site_has_an_edit_rate_of_its_own() -> None:
    network = warmed_up(new_network())
    assert network.edit_rates.tolist() == pytest.approx([0.1] * len(WIDTHS))
    before = network(as_signal(random_factors(), EPISODE, NUM_EPISODES))
    with torch.no_grad():
        network.edit_rates[list(WIDTHS).index("a.down")] *= -3
    after = network(as_signal(random_factors(), EPISODE, NUM_EPISODES))
    for site in WIDTHS:
        factor = -3 if site == "a.down" else 1
        close(after.updates[site].weight_delta(0), factor * before.updates[site].weight_delta(0))


def test_the_rank_is_at_most_the_width() -> None:
    block = blocks_of(transform_of(new_network(rank=1920), "4x6"))[0]
    assert block.u.shape == (10, 10)
    assert block.v.shape == (10, 10)


def test_num_blocks_is_the_number_of_blocks() -> None:
    assert len(blocks_of(transform_of(new_network(num_blocks=4), "4x6"))) == 4


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"num_blocks": 0}, {"rank": -1}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(EditorError, match="at least 1"):
        config(**wrong)


def test_no_parameter_is_a_scalar() -> None:
    """DeepSpeed cannot partition tensors without a dimension."""
    network = new_network()
    assert all(tensor.dim() > 0 for tensor in (*network.parameters(), *network.buffers()))


# --- independence ----------------------------------------------------------------------------------------------------


def assert_same_update(first: LowRankEdit, episode: int, second: LowRankEdit, other: int) -> None:
    """Assert that two episodes change every weight alike."""
    assert list(first.updates) == list(second.updates) == list(WIDTHS)
    for site in WIDTHS:
        close(first.updates[site].weight_delta(episode), second.updates[site].weight_delta(other))


def test_an_episode_gets_the_same_edit_alone_and_among_others() -> None:
    network = warmed_up(randomised(new_network()))
    factors = random_factors()
    together = network(as_signal(factors, EPISODE, NUM_EPISODES))
    for episode in EPISODE.unique().tolist():
        rows = episode == EPISODE
        own = {site: Factors(f.u[rows], f.delta[rows]) for site, f in factors.items()}
        alone = network(as_signal(own, torch.zeros(int(rows.sum()), dtype=torch.long), 1))
        assert_same_update(alone, 0, together, episode)


def test_an_episode_without_text_gets_no_edit() -> None:
    network = warmed_up(randomised(new_network()))
    edit = network(as_signal(random_factors(), EPISODE, NUM_EPISODES))
    for episode in (2, 4):
        assert not any(update.weight_delta(episode).any() for update in edit.updates.values())


def test_padding_does_not_matter() -> None:
    network = warmed_up(randomised(new_network()))
    factors = random_factors()
    padded = {
        site: Factors(nn.functional.pad(f.u, (0, 0, 2, 3), value=1.0), nn.functional.pad(f.delta, (0, 0, 2, 3)))
        for site, f in factors.items()
    }
    plain, wider = (network(as_signal(each, EPISODE, NUM_EPISODES)) for each in (factors, padded))
    for episode in range(NUM_EPISODES):
        assert_same_update(wider, episode, plain, episode)


def test_the_rank_of_an_edit_is_its_longest_episode() -> None:
    edit = new_network()(as_signal(random_factors(), EPISODE, NUM_EPISODES))
    # Site a.gate: texts 0 and 1 of episode 0 have 6 and 2 tokens whose input and gradient are not zero.
    assert edit.updates["a.gate"].u.shape == (NUM_EPISODES, 8, 4)
    assert edit.updates["a.gate"].v.shape == (NUM_EPISODES, 8, 6)


def test_no_gradient_anywhere_gives_an_empty_edit() -> None:
    network = new_network()
    factors = {site: Factors(f.u, torch.zeros_like(f.delta)) for site, f in random_factors().items()}
    edit = network(as_signal(factors, EPISODE, NUM_EPISODES))
    assert not any(update.weight_delta(e).any() for update in edit.updates.values() for e in range(NUM_EPISODES))
    sum(update.v.sum() for update in edit.updates.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters()), "every rank must reduce the same"


@pytest.mark.parametrize("normalise", [True, False])
def test_half_precision_factors_are_transformed_in_float32(normalise: bool) -> None:
    half = {site: Factors(f.u.bfloat16(), f.delta.bfloat16()) for site, f in random_factors().items()}
    exact = {site: Factors(f.u.float(), f.delta.float()) for site, f in half.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        edit = randomised(new_network(normalise=normalise))(as_signal(half, EPISODE, NUM_EPISODES))
    expected = randomised(new_network(normalise=normalise))(as_signal(exact, EPISODE, NUM_EPISODES))
    for site in WIDTHS:
        assert torch.equal(edit.updates[site].u, expected.updates[site].u)
        assert torch.equal(edit.updates[site].v, expected.updates[site].v)
