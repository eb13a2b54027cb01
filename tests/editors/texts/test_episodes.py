"""Tests of `editors.texts.episodes`: some requests of a batch are the batch of those requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.texts.batches import TokenBatch, collate_texts
from editors.texts.encoders import collate_pairs
from editors.texts.episodes import RequestBatch
from tests.tiny_models import PAD_ID, as_requests, random_texts
from tests.tiny_seq2seq import random_pairs

LENGTHS = (7, 12, 3, 5, 4)
EPISODE = (0, 1, 1, 3, 3)
NUM_EPISODES = 4  # episode 2 has no request
KINDS = ("right", "left", "encoder-decoder")


def tokens_of(kind: str, chosen: Sequence[int], episode: Sequence[int]) -> TokenBatch:
    """Texts with these numbers, and no others, as a batch."""
    if kind == "encoder-decoder":
        pairs = random_pairs(LENGTHS, max_answer=6)
        return collate_pairs([pairs[number] for number in chosen], episode, PAD_ID)
    texts = random_texts(LENGTHS)
    return collate_texts([texts[number] for number in chosen], episode, PAD_ID, "left" if kind == "left" else "right")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def requests(kind: str) -> RequestBatch:
    """All requests, with states that say which token they are of: its id, and zero at padding."""
    tokens = tokens_of(kind, range(5), EPISODE)
    return as_requests(tokens, NUM_EPISODES, states_of(tokens))


def states_of(tokens: TokenBatch) -> Tensor:
    return (tokens.input_ids * tokens.attention_mask).unsqueeze(-1).float()


def assert_same(found: RequestBatch, tokens: TokenBatch, num_episodes: int) -> None:
    wanted = as_requests(tokens, num_episodes, states_of(tokens))
    assert (found.requests, found.num_episodes) == (wanted.requests, wanted.num_episodes)
    assert found.hidden is not None
    assert torch.equal(found.hidden, states_of(tokens))
    for field in fields(TokenBatch):
        own, other = getattr(found.tokens, field.name), getattr(tokens, field.name)
        assert torch.equal(own, other) if isinstance(own, Tensor) else own == other, field.name


@pytest.mark.parametrize("chosen", [(0,), (2, 3), (1, 2, 4), (0, 1, 2, 3, 4)])
def test_selected_requests_are_the_batch_of_them_alone(requests: RequestBatch, kind: str, chosen: Any) -> None:
    owners = [EPISODE[number] for number in chosen]
    assert_same(requests.select(chosen), tokens_of(kind, chosen, owners), NUM_EPISODES)


@pytest.mark.parametrize(
    ("episodes", "chosen", "owners"),
    [
        ((0, 3), (0, 3, 4), (0, 1, 1)),
        ((1,), (1, 2), (0, 0)),
        ((2, 3), (3, 4), (1, 1)),
        ((0, 1, 2, 3), range(5), EPISODE),
    ],
)
def test_requests_of_episodes_are_the_batch_of_them_alone_numbered_anew(
    requests: RequestBatch, kind: str, episodes: Any, chosen: Any, owners: Any
) -> None:
    assert_same(requests.of_episodes(episodes), tokens_of(kind, chosen, owners), len(episodes))


def test_an_episode_without_requests_has_none(requests: RequestBatch) -> None:
    found = requests.of_episodes([2])
    assert (found.requests, found.num_episodes, found.tokens.num_texts) == ((), 1, 0)
    assert found.lengths() == []


def test_lengths_are_those_without_padding(requests: RequestBatch, kind: str) -> None:
    assert requests.lengths() == [tokens_of(kind, [n], [0]).input_ids.shape[1] for n in range(5)]


def test_narrowing_leaves_a_narrow_batch_as_it_is(requests: RequestBatch) -> None:
    narrow = requests.tokens.narrowed()
    assert torch.equal(narrow.input_ids, requests.tokens.input_ids)
    assert torch.equal(narrow.positions, requests.tokens.positions)


def test_requests_without_a_prefix_stay_so(requests: RequestBatch) -> None:
    assert requests.with_prefix(None).select([1, 3]).hidden is None
    assert requests.hidden is not None
