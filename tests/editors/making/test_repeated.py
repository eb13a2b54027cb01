"""Tests of editing again until the answer flips."""

from __future__ import annotations

import pytest
import torch

from editors.edits.composing import low_rank
from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal
from editors.making.gradient import GradientMethod
from editors.making.repeated import make_until_flipped
from editors.making.streaming import TOKENS_AT_ONCE
from editors.texts.batches import TokenBatch, collate_texts
from tests.tiny_models import PAD_ID, as_requests, captured, random_texts, tiny_lm, tiny_model

EPISODE = [0, 1, 1, 3]
NUM_EPISODES = 4  # episode 2 has no text


class Descent(GradientMethod):
    """A hypernetwork that takes a gradient step; it notes what it was shown."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.shown: list[EditSignal] = []

    def updates(self, signal: EditSignal) -> LowRankEdit:
        self.shown.append(signal)
        member = signal.tokens.episode == torch.arange(signal.num_episodes).unsqueeze(1)
        updates = {}
        for site, factors in signal.factors.items():
            v = -self.rate * (member[..., None, None] * factors.delta).flatten(1, 2)
            updates[site] = SiteUpdate(factors.u.flatten(0, 1).expand(signal.num_episodes, -1, -1), v)
        return LowRankEdit(updates)


@pytest.fixture
def lm() -> FrozenLM:
    return tiny_lm(tiny_model("llama"), num_blocks=2)


@pytest.fixture
def tokens() -> TokenBatch:
    return collate_texts(random_texts((7, 3, 12, 5)), EPISODE, PAD_ID)


def made(method: GradientMethod, lm: FrozenLM, tokens: TokenBatch, attempts: int) -> LowRankEdit:
    return low_rank(make_until_flipped(method, lm, as_requests(tokens, NUM_EPISODES), attempts))


def flipped(lm: FrozenLM, tokens: TokenBatch, edit: LowRankEdit | None) -> list[bool]:
    """Of each episode, whether the model prefers all of its targets."""
    right = lm.logits(tokens, edit).argmax(dim=-1) == tokens.targets
    return [bool(right[tokens.answer_episode() == episode].all()) for episode in range(NUM_EPISODES)]


@torch.no_grad()
def test_repeats_until_every_answer_has_flipped(lm: FrozenLM, tokens: TokenBatch) -> None:
    network = Descent(0.05)
    edit = made(network, lm, tokens, attempts=40)
    assert not all(flipped(lm, tokens, None))
    assert all(flipped(lm, tokens, edit))
    assert 1 < len(network.shown) < 40


@torch.no_grad()
def test_each_update_is_made_from_the_edited_model(lm: FrozenLM, tokens: TokenBatch) -> None:
    first, second = Descent(0.01), Descent(0.01)
    edit = made(first, lm, tokens, attempts=1)
    made(second, lm, tokens, attempts=2)
    assert len(second.shown) == 2
    expected = captured(lm, tokens, NUM_EPISODES, edit=edit)
    # Only what has failed is read again; episode 2 has no text.
    failed = [episode for episode, done in enumerate(flipped(lm, tokens, edit)) if not done]
    texts = [text for text, episode in enumerate(EPISODE) if episode in failed]
    assert failed
    assert (second.shown[1].loss <= second.shown[0].loss[failed]).all()
    torch.testing.assert_close(second.shown[1].loss, expected.loss[failed])
    width = second.shown[1].tokens.input_ids.shape[1]
    for site, factors in expected.factors.items():
        torch.testing.assert_close(second.shown[1].factors[site].delta, factors.delta[texts, :width])
        assert not torch.equal(factors.delta, second.shown[0].factors[site].delta)


@torch.no_grad()
def test_an_episode_of_any_size_is_read_some_requests_at_a_time(lm: FrozenLM) -> None:
    tokens = collate_texts(random_texts([12] * 200), [0] * 200, PAD_ID)
    read: list[int] = []
    lm.model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    made(Descent(0.0), lm, tokens, attempts=2)
    assert max(read) <= TOKENS_AT_ONCE


@torch.no_grad()
def test_an_episode_that_has_flipped_gets_no_further_update(lm: FrozenLM, tokens: TokenBatch) -> None:
    said = lm.logits(tokens).argmax(dim=-1)
    # Episode 0 is asked for what the model says anyway.
    own = tokens.answer_episode() == 0
    tokens.targets = torch.where(own, said, tokens.targets)
    network = Descent(0.001)
    once = made(network, lm, tokens, attempts=1)
    twice = made(network, lm, tokens, attempts=2)
    assert flipped(lm, tokens, once)[0]
    for site, update in twice.updates.items():
        assert torch.equal(update.weight_delta(0), once.updates[site].weight_delta(0))
        assert not torch.equal(update.weight_delta(1), once.updates[site].weight_delta(1))
