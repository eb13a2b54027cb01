"""Texts that begin alike: what is read once saves tokens, and the states are those of each text alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV2Config, Lfm2Config, PreTrainedConfig, PreTrainedModel

from editors.lm.batching import bucketing
from editors.lm.batching.bucketing import cheapest_buckets
from editors.lm.batching.compact import Text
from editors.lm.batching.prefix_sharing import shared_prefixes
from editors.lm.cache.store import PrefixCache
from editors.lm.frozen import FrozenLM
from editors.lm.kv_cache import KVCache
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import ARCHITECTURES, HIDDEN, PAD_ID, VOCABULARY, random_texts, tiny_lm, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), max_size=6)


def tokens_only(count: int, length: int) -> int:
    """What a pass costs where another one costs nothing."""
    return count * length


def parts(texts: list[Text], starts: dict[Text, int]) -> tuple[set[Text], list[Text]]:
    """What is read first, and the rests that are read behind it."""
    firsts = {text[: starts.get(text, len(text))] for text in texts}
    return firsts, [text[length:] for text, length in starts.items() if len(text) > length]


def in_common(texts: list[Text]) -> int:
    """How many leading tokens all of them have in common."""
    return max(count for count in range(len(texts[0]) + 1) if len({text[:count] for text in texts}) == 1)


def fewest_tokens(texts: list[Text]) -> int:
    """Least that has to be read if the sorted texts are cut into sets in any way, and each set's start is read once."""
    ordered = sorted(set(texts))
    ways = []
    for count in range(len(ordered)):
        for cuts in combinations(range(1, len(ordered)), count):
            sets = [ordered[start:end] for start, end in pairwise([0, *cuts, len(ordered)])]
            ways.append(sum(sum(map(len, each)) - (len(each) - 1) * in_common(each) for each in sets))
    return min(ways, default=0)


@given(TEXTS)
def test_where_passes_are_free_the_fewest_tokens_are_read(texts: list[Text]) -> None:
    firsts, rests = parts(texts, shared_prefixes(texts, tokens_only, 0.0))
    assert sum(map(len, firsts)) + sum(map(len, rests)) == fewest_tokens(texts)


@given(TEXTS, st.integers(0, 12))
def test_sharing_costs_less_than_reading_whole_texts_or_is_left(texts: list[Text], extra: int) -> None:
    def cost(count: int, length: int) -> int:
        return extra + count * length

    def total(read: list[int]) -> int:
        return sum(cost(len(group), max(read[i] for i in group)) for group in cheapest_buckets(read, cost))

    starts = shared_prefixes(texts, cost, 0.5)
    assert all(0 < length <= len(text) for text, length in starts.items())
    firsts, rests = parts(texts, starts)
    behind = sum(length for text, length in starts.items() if len(text) > length)
    split = total([*map(len, firsts)]) + 0.5 * behind + total([*map(len, rests)])
    whole = total([*map(len, set(texts))])
    assert split < whole if starts else split == whole


def begin_alike() -> list[EncodedText]:
    """Texts with two starts, longer than a sliding window; of each start one that is just that; and another text."""
    texts = random_texts((9,), seed=99)
    for seed, length in ((1, 14), (2, 10)):
        (start,) = random_texts((length,), seed=seed)
        for rest in random_texts((2, 3, 2, 4, 3, 2, 3), seed=10 + seed):
            ids = start.ids + rest.ids
            texts.append(EncodedText(ids, length, len(ids)))
        texts.append(start)
    return texts


TOKENS = sum(len(text.read) for text in begin_alike())


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def together(side: PaddingSide = "right") -> list[TokenBatch]:
    """Those texts in two batches."""
    texts = begin_alike()
    return [collate_texts(some, range(len(some)), PAD_ID, side) for some in (texts[:6], texts[6:])]


def alone(lm: FrozenLM) -> list[Tensor]:
    """States `[T, d]` of each of those texts read by itself."""
    hidden = [lm.prefix([collate_texts([text], [0], PAD_ID)])[0] for text in begin_alike()]
    return [states[0] for states in hidden if states is not None]


def keys_alone(lm: FrozenLM) -> list[Tensor]:
    """Keys and values of each of those texts read by itself."""
    caches = [KVCache() for _ in begin_alike()]
    for text, own in zip(begin_alike(), caches, strict=True):
        lm.prefix([collate_texts([text], [0], PAD_ID)], [own])
    return [own.first(0, len(text.read)) for text, own in zip(begin_alike(), caches, strict=True)]


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """How many tokens each pass reads, padding included."""
    read: list[int] = []

    def count(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read.append((args[0] if args else kwargs["input_ids"]).numel())

    hook = model.get_input_embeddings().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def read_together(lm: FrozenLM, side: PaddingSide = "right", caches: list[KVCache] | None = None) -> list[Tensor]:
    """States `[T, d]` of each of those texts, all read in one call."""
    batches = together(side)
    found = []
    for tokens, states in zip(batches, lm.prefix(batches, caches), strict=True):
        assert states is not None
        found += [state[mask.bool()] for state, mask in zip(states, tokens.attention_mask, strict=True)]
    return found


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "num_blocks"), [("left", 1), ("right", 3)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_and_keys_are_those_of_each_text_alone(architecture: str, side: PaddingSide, num_blocks: int) -> None:
    lm = tiny_lm(tiny_model(architecture), num_blocks=num_blocks)
    states, keys = alone(lm), keys_alone(lm)
    caches = [KVCache(), KVCache()]
    for own in (None, caches):
        with counted(lm.model) as read:
            close(read_together(lm, side, own), states)
        assert sum(read) < TOKENS // 2
    close([torch.cat(own.parts[row]) for own in caches for row in sorted(own.parts)], keys)


def test_a_store_gets_whole_texts() -> None:
    lm = tiny_lm(tiny_model("llama"), num_blocks=1)
    states = alone(lm)
    lm.use_cache(PrefixCache())
    read_together(lm)
    with counted(lm.model) as read:
        close(read_together(lm), states)
    assert read == []


def test_a_sharded_model_reads_whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes need equally many passes, whatever their texts begin with."""
    lm = tiny_lm(tiny_model("llama"), num_blocks=1)
    states = alone(lm)
    monkeypatch.setattr(bucketing, "as_many_as_others", lambda found: found)
    monkeypatch.setattr(FrozenLM, "is_sharded", True)
    with counted(lm.model) as read:
        close(read_together(lm), states)
    assert sum(read) >= TOKENS


def test_a_model_with_states_of_its_own_reads_whole_texts() -> None:
    """Here every other block is a convolution, which keys and values say nothing of."""
    lm = tiny_lm(random_model(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2)), num_blocks=1)
    with counted(lm.model) as read:
        close(read_together(lm), alone(lm))
    assert sum(read) >= TOKENS


def test_a_model_whose_keys_are_wider_than_its_values_reads_whole_texts() -> None:
    """That is known before the first text is read."""
    latent: dict[str, Any] = {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    lm = tiny_lm(
        random_model(DeepseekV2Config(**SIZES, **latent, q_lora_rank=None, first_k_dense_replace=4)), num_blocks=1
    )
    states = alone(lm)
    with counted(lm.model) as read:
        close(read_together(lm), states)
    assert TOKENS <= sum(read) < TOKENS + 40
    caches = [KVCache(), KVCache()]
    close(read_together(lm, "right", caches), states)
    assert caches == [KVCache(), KVCache()]
