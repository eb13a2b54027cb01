"""Tests of `GradientMethod`: an episode of many requests, captured in parts, gives the edit of one capture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.making.gradient import GradientMethod
from editors.methods.mend.network import MENDConfig, MENDNetwork
from editors.texts.batches import TokenBatch, collate_texts
from editors.texts.episodes import RequestBatch
from tests.editors.methods.ke.test_network import new_network, randomised
from tests.tiny_models import PAD_ID, as_requests, captured, random_edit, random_texts, tiny_lm, tiny_model

EPISODE = [0, 1, 1, 1, 3]
NUM_EPISODES = 4  # episode 2 has no request


def mend(lm: FrozenLM, ridge: float | None = None) -> GradientMethod:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MENDNetwork(lm.site_widths(), MENDConfig(rank=4, edit_rate=0.1, key_ridge=ridge))
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


METHODS: dict[str, Callable[[FrozenLM], GradientMethod]] = {
    "mend": mend,
    "mend with key_ridge": lambda lm: mend(lm, 0.1),
    "ke, normalised": lambda lm: randomised(new_network(lm)),
    "ke, raw": lambda lm: randomised(new_network(lm, gradient="raw")),
    "ke, unit": lambda lm: randomised(new_network(lm, gradient="unit")),
}


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm(tiny_model("llama"), num_blocks=2)


@pytest.fixture(scope="module")
def tokens() -> TokenBatch:
    return collate_texts(random_texts((7, 3, 12, 5, 6)), EPISODE, PAD_ID)


@pytest.fixture
def requests(tokens: TokenBatch) -> RequestBatch:
    return as_requests(tokens, NUM_EPISODES)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, lm: FrozenLM, tokens: TokenBatch) -> GradientMethod:
    """With statistics of these texts, where it keeps some."""
    made = METHODS[request.param](lm)
    with torch.no_grad():
        made(captured(lm, tokens, NUM_EPISODES))
    return made.eval()


def assert_same_updates(found: LowRankEdit, wanted: LowRankEdit) -> None:
    for site, update in wanted.updates.items():
        for episode in range(NUM_EPISODES):
            delta, other = update.weight_delta(episode), found.updates[site].weight_delta(episode)
            scale = float(delta.abs().max())
            torch.testing.assert_close(other, delta, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))
            assert (scale > 0) is (episode in EPISODE)


@torch.no_grad()
@pytest.mark.parametrize("most", [1, 20, 30])
@pytest.mark.parametrize("edited", [False, True], ids=["", "edited before"])
def test_parts_of_an_episode_give_the_edit_of_one_capture(
    method: GradientMethod, lm: FrozenLM, tokens: TokenBatch, requests: RequestBatch, most: int, edited: bool
) -> None:
    in_force = random_edit(lm.site_widths(), NUM_EPISODES, seed=3) if edited else None
    wanted = method(captured(lm, tokens, NUM_EPISODES, edit=in_force))
    method.tokens_at_once = most
    found = method.make(lm, requests, in_force)
    assert_same_updates(found, wanted)


@torch.no_grad()
def test_an_edit_in_force_changes_what_is_made_and_is_no_part_of_it(
    method: GradientMethod, lm: FrozenLM, requests: RequestBatch
) -> None:
    in_force = random_edit(lm.site_widths(), NUM_EPISODES, seed=3)
    nothing = LowRankEdit({site: SiteUpdate(update.u, 0 * update.v) for site, update in in_force.updates.items()})
    plain = method.make(lm, requests)
    assert_same_updates(method.make(lm, requests, nothing), plain)
    after = method.make(lm, requests, in_force)
    site = lm.sites[-1]
    assert not torch.allclose(after.updates[site].weight_delta(0), plain.updates[site].weight_delta(0))
    assert not after.updates[site].weight_delta(2).any()  # no request, so nothing of the edit in force either


def test_with_gradients_everything_is_one_capture_that_can_be_learned_from(
    method: GradientMethod, lm: FrozenLM, tokens: TokenBatch, requests: RequestBatch
) -> None:
    method.tokens_at_once = 1
    edit = method.make(lm, requests)
    assert edit.loss_before is not None
    torch.testing.assert_close(edit.loss_before, captured(lm, tokens, NUM_EPISODES).loss)
    sum(update.v.square().sum() for update in edit.updates.values()).backward()  # type: ignore[union-attr]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())
