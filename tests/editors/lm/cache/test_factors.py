"""The capture's factors from a store: the same signal, and no known text is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.lm.cache.store import PrefixCache, TensorStore
from editors.lm.frozen import FrozenLM
from editors.lm.signal import EditSignal
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import (
    ARCHITECTURES,
    HIDDEN,
    PAD_ID,
    captured,
    random_batch,
    random_edit,
    random_texts,
    tiny_lm,
    tiny_model,
)
from tests.tiny_seq2seq import batch_of, random_pairs, tiny_seq2seq

LENGTHS = (7, 3, 12, 5)
EPISODES = [0, 0, 1, 3]


def cached(model: PreTrainedModel, **settings: Any) -> tuple[FrozenLM, TensorStore]:
    lm = tiny_lm(model, num_blocks=2)
    lm.use_cache(PrefixCache(factors=True, **settings))
    return lm, lm.stores["factors"]


def capture(lm: FrozenLM, tokens: TokenBatch) -> EditSignal:
    return captured(lm, tokens, 4, lm.prefix([tokens])[0])


def assert_same(found: EditSignal, expected: EditSignal, tolerance: float = 1e-6) -> None:
    """Equal signals; inputs at padding do not count."""

    def close(actual: Tensor, wanted: Tensor) -> None:
        assert actual.dtype == wanted.dtype
        torch.testing.assert_close(actual, wanted, rtol=10 * tolerance, atol=tolerance)

    real = expected.tokens.attention_mask.bool()
    assert list(found.factors) == list(expected.factors)
    for site, factors in expected.factors.items():
        close(found.factors[site].u[real], factors.u[real])
        close(found.factors[site].delta, factors.delta)
        assert not found.factors[site].u[~real].any()
    assert torch.equal(found.predicted, expected.predicted)
    assert torch.equal(found.tokens.input_ids, expected.tokens.input_ids)
    assert torch.equal(found.tokens.episode, expected.tokens.episode)
    assert found.num_episodes == expected.num_episodes
    close(found.loss, expected.loss)


@contextmanager
def texts_run(lm: FrozenLM) -> Iterator[list[int]]:
    """How many texts the model is given, pass by pass."""
    found: list[int] = []

    def count(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append(len(args[0] if args else kwargs["input_ids"]))

    handle = lm.model.get_input_embeddings().register_forward_pre_hook(count, with_kwargs=True)
    yield found
    handle.remove()


def collated(texts: Sequence[EncodedText], episode: Sequence[int], side: PaddingSide = "right") -> TokenBatch:
    return collate_texts(texts, episode, PAD_ID, side)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_signal_is_that_of_a_capture(architecture: str) -> None:
    model = tiny_model(architecture)
    (lm, store), plain = cached(model), tiny_lm(model, num_blocks=2)
    texts = random_texts(LENGTHS)
    for side in ("left", "right"):
        tokens = collated(texts, EPISODES, side)
        assert_same(capture(lm, tokens), capture(plain, tokens), tolerance=1e-5)
    # In other company.
    tokens = collated([texts[3], *random_texts((4,), seed=1), texts[0]], EPISODES[:3])
    assert_same(capture(lm, tokens), capture(plain, tokens), tolerance=1e-5)
    assert (store.hits, store.misses) == (6, 5)
    (hidden,) = lm.prefix([tokens])
    with texts_run(lm) as ran:
        captured(lm, tokens, 4, hidden)
    assert not ran, "a known text was run"


def test_only_new_texts_are_run_and_each_once() -> None:
    lm, _ = cached(tiny_model("llama"))
    texts = random_texts(LENGTHS)
    capture(lm, collated(texts[:2], EPISODES[:2]))
    tokens = collated([texts[2], *texts], [0, *EPISODES])
    (hidden,) = lm.prefix([tokens])
    with texts_run(lm) as ran:
        captured(lm, tokens, 4, hidden)
    assert sum(ran) == 2


def test_another_answer_makes_another_text() -> None:
    """Another span of the same tokens, and another last token, which is a label only and never read."""
    lm, store = cached(tiny_model("llama"))
    plain = tiny_lm(lm.model, num_blocks=2)
    (text,) = random_texts((8,))
    others = [replace(text, answer_start=start) for start in (4, 5, 6)]
    last = replace(others[0], ids=(*text.ids[:-1], text.ids[-1] - 1))
    assert last.read == text.read
    for other in (*others, last):
        tokens = collated([other], [0])
        assert_same(capture(lm, tokens), capture(plain, tokens))
    assert (store.hits, store.misses) == (0, 4)


def test_an_edited_models_factors_are_neither_kept_nor_looked_up() -> None:
    lm, store = cached(tiny_model("llama"))
    tokens = random_batch(LENGTHS)
    edit = random_edit(lm.site_widths(), num_episodes=4)
    base = capture(lm, tokens)
    again = captured(lm, tokens, 4, edit=edit)
    assert (store.hits, store.misses) == (0, 4)
    assert (again.loss - base.loss).abs().min() > 1e-3
    assert_same(capture(lm, tokens), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_those_of_a_capture(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of a float16 model delta is in float32."""
    model = tiny_model("llama", dtype=dtype)
    tokens = random_batch(LENGTHS)
    expected = capture(tiny_lm(model, num_blocks=2), tokens)
    lm, store = cached(model, folder=str(tmp_path))
    for _ in range(2):
        assert_same(capture(lm, tokens), expected, tolerance=2e-2)
        store.flush()
    assert store.hits == 4


def test_an_input_that_two_layers_read_is_kept_once(tmp_path: Path) -> None:
    lm, store = cached(tiny_model("llama"), folder=str(tmp_path))
    signal = capture(lm, random_batch((9,)))
    store.flush()
    numbers = sum(sum(widths) for widths in lm.site_widths().values()) - 2 * HIDDEN  # gate and up, in two blocks
    largest = max(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    tokens = int(signal.tokens.attention_mask.sum())
    assert 0 < largest - 4 * numbers * tokens < 3000, "more than a header"


def test_no_more_is_kept_than_there_is_room_for() -> None:
    lm, store = cached(tiny_model("llama"), megabytes=1)
    plain = tiny_lm(lm.model, num_blocks=2)
    texts = random_texts([60] * 20)
    for text in [*texts, *texts]:
        tokens = collated([text], [0])
        assert_same(capture(lm, tokens), capture(plain, tokens), tolerance=1e-5)
    assert 0 < store.hits < 20


def test_works_in_inference_mode() -> None:
    lm, _ = cached(tiny_model("llama"))
    with torch.inference_mode():
        tokens = random_batch(LENGTHS)
        signals = [capture(lm, tokens) for _ in range(2)]
    assert_same(signals[1], signals[0])
    assert not any(tensor.is_inference() for f in signals[1].factors.values() for tensor in (f.u, f.delta))


def test_of_an_encoder_decoder_model_only_the_prefix_is_kept() -> None:
    model = tiny_seq2seq("t5")
    lm = tiny_lm(model, num_blocks=1)
    lm.use_cache(PrefixCache(factors=True))
    assert list(lm.stores) == ["frozen prefix"]
    tokens = batch_of(random_pairs(LENGTHS), range(4))
    signals = [capture(each, tokens) for each in (lm, lm, tiny_lm(model, num_blocks=1))]
    for signal in signals[:2]:
        torch.testing.assert_close(signal.loss, signals[2].loss)
