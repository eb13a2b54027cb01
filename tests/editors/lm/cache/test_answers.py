"""The base model's answers from kept states: the same logits, and no block runs on a known text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from editors.lm.cache.store import PrefixCache
from editors.lm.frozen import FrozenLM
from editors.texts.batches import EncodedText, PaddingSide, TokenBatch, collate_texts
from tests.tiny_models import ARCHITECTURES, BLOCKS, HIDDEN, PAD_ID, random_batch, random_texts, tiny_lm, tiny_model

LENGTHS = (7, 3, 12, 5)
ANSWERS = "base model's answers"


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=10 * tolerance, atol=tolerance)


def cached(model: PreTrainedModel, num_blocks: int = 2, **settings: Any) -> FrozenLM:
    lm = tiny_lm(model, num_blocks=num_blocks)
    lm.use_cache(PrefixCache(**settings))
    return lm


def batch_of(texts: Sequence[EncodedText], side: PaddingSide = "right") -> TokenBatch:
    return collate_texts(texts, range(len(texts)), PAD_ID, side)


def base_logits(lm: FrozenLM, tokens: TokenBatch) -> Tensor:
    return lm.base_answer_logits(tokens, lm.prefix([tokens])[0]).logits()


@contextmanager
def sizes(layer: nn.Module) -> Iterator[list[torch.Size]]:
    """The shapes of what `layer` is given, pass by pass."""
    found: list[torch.Size] = []
    handle = layer.register_forward_hook(lambda _, args, __: found.append(args[0].shape))
    yield found
    handle.remove()


def model_with_a_projection() -> PreTrainedModel:
    """An OPT whose blocks are wider than its head, as in OPT-350M."""
    config = tiny_model("opt").config
    config.word_embed_proj_dim = HIDDEN // 2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "projected"])
def test_the_logits_are_those_of_the_base_model(architecture: str) -> None:
    """Whatever an architecture does behind its blocks: norms, capped logits (Gemma 2), projections (OPT)."""
    model = model_with_a_projection() if architecture == "projected" else tiny_model(architecture)
    lm, plain = cached(model), tiny_lm(model)
    texts, new = random_texts(LENGTHS), random_texts((6, 4), seed=1)
    batches = [batch_of(texts, "left"), batch_of([new[0], *texts[2:], new[1], *texts[:2]])]
    for tokens in [*batches, *batches]:
        close(base_logits(lm, tokens), plain.logits(tokens))
    with sizes(model.get_submodule(lm.sites[-1])) as ran, sizes(model.get_output_embeddings()) as scored:
        base_logits(lm, batches[1])
    assert not ran, "a block ran on known texts"
    assert [shape[1] for shape in scored] == [len(batches[1].targets)]


def test_only_new_texts_are_run() -> None:
    lm = cached(tiny_model("llama"))
    texts = random_texts(LENGTHS)
    base_logits(lm, batch_of(texts[:2]))
    with sizes(lm.model.get_submodule(lm.sites[-1])) as ran:
        # One of the new ones comes twice.
        base_logits(lm, batch_of([texts[2], *texts]))
    assert sum(shape[0] for shape in ran) == 2


def test_a_model_that_has_not_run_yet_reads_files(tmp_path: Path) -> None:
    """Its blocks return tuples, which it has to learn first; no block lies below the edit."""
    model = tiny_model("falcon")
    tokens = random_batch(LENGTHS)
    first = cached(model, BLOCKS, folder=str(tmp_path))
    expected = base_logits(first, tokens)
    first.stores[ANSWERS].flush()
    second = cached(model, BLOCKS, folder=str(tmp_path))
    close(base_logits(second, tokens), expected)
    assert (second.stores[ANSWERS].hits, second.stores[ANSWERS].misses) == (len(LENGTHS), 0)


def test_the_same_tokens_with_another_answer_are_another_text() -> None:
    lm = cached(tiny_model("llama"))
    (text,) = random_texts((8,))
    for start in (4, 5, 6):
        tokens = batch_of([replace(text, answer_start=start)])
        close(base_logits(lm, tokens), tiny_lm(lm.model).logits(tokens))
    assert (lm.stores[ANSWERS].hits, lm.stores[ANSWERS].misses) == (0, 3)


@pytest.mark.parametrize("dtype", ["model", "bfloat16"])
def test_a_bfloat16_model_keeps_its_type(dtype: str) -> None:
    lm = cached(tiny_model("llama", dtype=torch.bfloat16), dtype=dtype)
    tokens = random_batch(LENGTHS)
    first, second = base_logits(lm, tokens), base_logits(lm, tokens)
    assert first.dtype == second.dtype == torch.bfloat16
    assert torch.equal(first, second)
    close(first.float(), tiny_lm(lm.model).logits(tokens).float(), tolerance=2e-2)


def test_bfloat16_rounds_what_a_float32_model_says() -> None:
    lm = cached(tiny_model("llama"), dtype="bfloat16")
    tokens = random_batch(LENGTHS)
    exact, rounded = base_logits(lm, tokens), base_logits(lm, tokens)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    close(rounded, exact, tolerance=3e-2)
