"""Tests of KE's hypernetwork against the full-size formula of the paper (De Cao et al. 2021)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal, Factors
from editors.making.normaliser import RunningNormaliser
from editors.methods.ke.condition import condition_ids
from editors.methods.ke.network import Conditioner, Gate, KEConfig, KENetwork, KEShape
from editors.texts.batches import PaddingSide, collate_texts
from tests.tiny_models import HIDDEN, PAD_ID, VOCABULARY, captured, random_texts, tiny_lm, tiny_model
from tests.tiny_seq2seq import batch_of, random_pairs, tiny_seq2seq

Gradient = Literal["raw", "unit", "normalised"]
Scale = Literal["paper", "balanced"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
SCALES: tuple[Scale, ...] = get_args(Scale)
ARCHITECTURES = ("llama", "gpt2")  # `nn.Linear` and `Conv1D`

LENGTHS = (7, 3, 12, 5)
EPISODE = [0, 1, 1, 3]
NUM_EPISODES = 5  # episodes 2 and 4 have no text at all


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return tiny_lm(tiny_model(request.param), num_blocks=2)


def signal_of(lm: FrozenLM, side: PaddingSide = "right") -> EditSignal:
    return captured(lm, collate_texts(random_texts(LENGTHS), EPISODE, PAD_ID, side), NUM_EPISODES)


def new_network(lm: FrozenLM, **changes: Any) -> KENetwork:
    """A small hypernetwork, always with the same initial values."""
    config = dataclasses.replace(KEConfig(hidden_width=6, condition_width=8, edit_rate=0.1), **changes)
    shape = KEShape(
        **dataclasses.asdict(config),
        vocabulary=VOCABULARY,
        embedding_width=HIDDEN,
        separators=[[90, 91], [92]],
        input_rows=[site for site in lm.sites if isinstance(lm.model.get_submodule(site), Conv1D)],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return KENetwork(lm.site_widths(), shape)


def randomised(network: KENetwork) -> KENetwork:
    """The same network in eval mode, its parameters moved and its statistics known."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    for module in network.modules():
        if isinstance(module, RunningNormaliser):
            module.update(torch.randn(20, len(module.mean), generator=generator) * 0.7 + 0.2)
    return network.eval()


# --- the full-size formula -------------------------------------------------------------------------------------------


def full_gradient(network: KENetwork, site: str, factors: Factors, text: int) -> Tensor:
    """`[d_in, d_out]`: the gradient of one text in the scale that is wanted."""
    u, delta = factors.u[text].double(), factors.delta[text].double()
    kept = u.any(dim=-1) & delta.any(dim=-1)
    u, delta = u[kept], delta[kept]
    if network.config.gradient == "normalised":
        first, second = network.normalisers[site.replace(".", "#")].children()
        u, delta = copy.deepcopy(first).double()(u), copy.deepcopy(second).double()(delta)
    gradient = u.mT @ delta
    return gradient / gradient.square().mean().sqrt() if network.config.gradient == "unit" else gradient


def full_update(network: KENetwork, lm: FrozenLM, site: str, signal: EditSignal, episode: int) -> Tensor:
    """`[d_in, d_out]`: what is added to a weight in one episode, with matrices as the model stores them."""
    exact = copy.deepcopy(network).double()
    condition = exact.condition(*condition_ids(signal, network.config.separators))
    gates: Gate = exact.conditioners[site.replace(".", "#")](condition)
    stores_inputs_first = isinstance(lm.model.get_submodule(site), Conv1D)
    weight = lm.model.get_submodule(site).get_parameter("weight")
    total = torch.zeros(lm.site_widths()[site], dtype=torch.float64)
    for text in (signal.tokens.episode == episode).nonzero().flatten().tolist():
        gradient = full_gradient(network, site, signal.factors[site], text)
        stored = gradient if stores_inputs_first else gradient.mT
        assert stored.shape == weight.shape
        gate = torch.outer(gates.alpha[text].softmax(0), gates.gamma[text])
        added = torch.outer(gates.beta[text].softmax(0), gates.delta[text])
        update = gates.eta[text].sigmoid() * (stored * gate + added)
        if network.config.gate == "balanced":
            update = update * 2 * len(stored) * network.config.edit_rate
        total = total + (update if stores_inputs_first else update.mT)
    return total


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Assert that two tensors agree, in parts of the largest value."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


@torch.no_grad()
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_factored_update_equals_the_full_size_formula(lm: FrozenLM, gradient: Gradient, scale: Scale) -> None:
    network = randomised(new_network(lm, gradient=gradient, gate=scale))
    signal = signal_of(lm)
    edit = network(signal)
    for site in lm.sites:
        for episode in range(NUM_EPISODES):
            expected = full_update(network, lm, site, signal, episode)
            close(edit.updates[site].weight_delta(episode), expected)
            assert expected.any() == (episode in EPISODE), "a vanishing edit would prove nothing"


@torch.no_grad()
def test_factored_update_of_an_encoder_decoder_model_equals_the_formula() -> None:
    """Encoder and decoder sites see different numbers of tokens."""
    lm = tiny_lm(tiny_seq2seq("t5_1_1"), num_blocks=1)
    signal = captured(lm, batch_of(random_pairs(LENGTHS), EPISODE), NUM_EPISODES)
    network = randomised(new_network(lm))
    edit = network(signal)
    for site in lm.sites:
        close(edit.updates[site].weight_delta(1), full_update(network, lm, site, signal, 1))
    assert len({signal.factors[site].u.shape[1] for site in lm.sites}) == 2


def test_an_update_has_a_row_for_each_token_and_one_more(lm: FrozenLM) -> None:
    edit = new_network(lm)(signal_of(lm))
    # In the last block only predicting positions carry a gradient; below, all up to there. Episode 1 has two texts.
    most = sum(len(text.read) for text in random_texts(LENGTHS)[1:3])
    ranks = {site: update.u.shape[1] for site, update in edit.updates.items()}
    assert max(ranks.values()) == most + 2
    assert all(update.u.shape[:2] == update.v.shape[:2] for update in edit.updates.values())


# --- episodes --------------------------------------------------------------------------------------------------------


def alone(signal: EditSignal, lm: FrozenLM, episode: int) -> EditSignal:
    """The signal of one episode by itself."""
    texts = [text for text, owner in zip(random_texts(LENGTHS), EPISODE, strict=True) if owner == episode]
    return captured(lm, collate_texts(texts, [0] * len(texts), PAD_ID), 1)


@torch.no_grad()
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_all_episodes_at_once_equal_one_at_a_time(lm: FrozenLM, gradient: Gradient, side: PaddingSide) -> None:
    network = randomised(new_network(lm, gradient=gradient))
    signal = signal_of(lm, side)
    together = network(signal)
    for episode in set(EPISODE):
        single = network(alone(signal, lm, episode))
        for site in lm.sites:
            wanted = single.updates[site].weight_delta()
            close(together.updates[site].weight_delta(episode), wanted, tolerance=1e-5)


@torch.no_grad()
def test_another_target_gives_another_gate(lm: FrozenLM) -> None:
    network = randomised(new_network(lm))
    signal = signal_of(lm)
    other = dataclasses.replace(signal, predicted=(signal.predicted + 1) % VOCABULARY)
    assert not same_edit(network(signal), network(other))
    assert same_edit(network(signal), network(signal))


def same_edit(first: LowRankEdit, second: LowRankEdit) -> bool:
    return all(
        torch.equal(up.u, second.updates[s].u) and torch.equal(up.v, second.updates[s].v)
        for s, up in first.updates.items()
    )


# --- initial state ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("gradient", ["raw", "unit"])
def test_starts_close_to_gradient_descent(lm: FrozenLM, gradient: Gradient) -> None:
    network = new_network(lm, gradient=gradient).eval()
    signal = signal_of(lm)
    edit = network(signal)
    for site in lm.sites:
        wanted = -0.1 * sum(full_gradient(network, site, signal.factors[site], text) for text in (1, 2))
        assert isinstance(wanted, Tensor)
        found = edit.updates[site].weight_delta(1).double()
        assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.3
        if gradient == "unit":
            assert 0.8 < found.norm() / wanted.norm() < 1.3


def test_gates_start_near_descent_whatever_the_condition() -> None:
    conditioner = Conditioner(condition_width=8, hidden_width=6, m=40, n=30)
    conditioner.start_as_descent()
    gate = conditioner(torch.rand(3, 8) * 2 - 1)
    for name, start in {"alpha": 0, "beta": 0, "gamma": -1, "delta": 0, "eta": 0}.items():
        values = getattr(gate, name)
        assert (values - start).abs().max() < 0.2, name
        assert (values - start).abs().max() > 0, name


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_gradient_reaches_every_parameter(lm: FrozenLM, gradient: Gradient, scale: Scale) -> None:
    network = new_network(lm, gradient=gradient, gate=scale)
    edit = network(signal_of(lm))
    lm.logits(signal_of(lm).tokens, edit).logsumexp(dim=-1).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_gate_parameters_are_those_of_the_last_layers(lm: FrozenLM) -> None:
    network = new_network(lm)
    names = {name for name, p in network.named_parameters() if any(p is gate for gate in network.gate_parameters())}
    assert names == {name for name, _ in network.named_parameters() if ".output." in name}
    assert len(names) == 3 * len(lm.sites)


def test_half_precision_factors_are_gated_in_float32(lm: FrozenLM) -> None:
    signal = signal_of(lm)
    half = {site: Factors(f.u.bfloat16(), f.delta.bfloat16()) for site, f in signal.factors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        edit = new_network(lm)(dataclasses.replace(signal, factors=half))
    assert {up.u.dtype for up in edit.updates.values()} | {up.v.dtype for up in edit.updates.values()} == {
        torch.float32
    }


def test_saved_state_gives_the_same_edit(lm: FrozenLM) -> None:
    network, other = randomised(new_network(lm)), new_network(lm).eval()
    other.load_state_dict(network.state_dict())
    assert same_edit(other(signal_of(lm)), network(signal_of(lm)))


@pytest.mark.parametrize("rate", [0.0, -1e-4, float("nan"), float("inf")])
def test_edit_rate_must_descend(rate: float) -> None:
    with pytest.raises(EditorError, match="edit_rate must be above 0, got"):
        KEConfig(edit_rate=rate)


@pytest.mark.parametrize("name", ["hidden_width", "condition_width"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(EditorError, match=rf"{name}.* must be at least 1, got"):
        KEConfig(**{name: 0})  # type: ignore[arg-type]
