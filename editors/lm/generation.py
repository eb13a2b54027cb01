"""Greedy generation: of plain prompts, and of the prompts of token batches, with or without an edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from editors.base_models.families.lookup import as_family, family_of
from editors.edits.protocol import Edit
from editors.lm.batching.bucketing import cheapest_buckets
from editors.lm.batching.compact import Compact
from editors.lm.batching.costs import pass_cost
from editors.lm.kv_cache import KVCache, as_dynamic_cache
from editors.texts.batches import TokenBatch
from editors.texts.padding import padded_texts


@dataclass
class Continuation:
    """What a pass over prompts and answers has left of a batch: where greedy generation can go on.

    Args:
        predicted: `[N]` the tokens it preferred at the answer positions. Up to the first one that is not the answer's,
            they are what the model generates.
        kv_cache: of the texts.
    """

    predicted: Tensor
    kv_cache: KVCache


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    batches: Sequence[TokenBatch],
    edit: Edit | None = None,
    extra_tokens: int = 0,
    continuations: Sequence[Continuation] | None = None,
    *,
    sharded: bool = False,
) -> list[list[list[int]]]:
    """Greedy continuation of each text's prompt; see `FrozenLM.generate`.

    Texts of all batches are run together, in buckets by how much there is to generate: a pass reads all weights for one
    more token of each text, so few long passes with many texts are cheapest.
    """
    starts: Sequence[Continuation | None] = continuations or [None] * len(batches)
    prompts = [prompt for pair in zip(batches, starts, strict=True) for prompt in _prompts(*pair, extra_tokens)]
    ends = _end_ids(model)
    generated = [_until_end(prompt.generated, ends) for prompt in prompts]
    extra = pass_cost(batches[0].input_ids.device, sharded=sharded) if batches else 0
    # The processes of a sharded model go on with finished texts as well: otherwise one might have none left.
    finished = [generated[i] != prompt.generated for i, prompt in enumerate(prompts)]
    open_ends = [i for i, prompt in enumerate(prompts) if prompt.missing and (sharded or not finished[i])]
    missing = [prompts[i].missing for i in open_ends]
    for bucket in cheapest_buckets(missing, lambda texts, length: length * (extra + texts), sharded=sharded):
        chosen = [prompts[open_ends[i]] for i in bucket]
        outputs = _generate_bucket(model, chosen, edit, max(prompt.missing for prompt in chosen))
        for i, output in zip(bucket, outputs, strict=True):
            row = open_ends[i]
            if not finished[row]:
                generated[row] = [*prompts[row].generated, *output[: missing[i]]]
    counts = [batch.num_texts for batch in batches]
    return [generated[sum(counts[:b]) : sum(counts[: b + 1])] for b in range(len(counts))]


def _generate_bucket(
    model: PreTrainedModel, prompts: Sequence[_Prompt], edit: Edit | None, length: int
) -> list[list[int]]:
    """Up to `length` tokens after each prompt, all prompts in one batch."""
    ids, mask = padded_texts([prompt.ids for prompt in prompts], _pad_id(model), family_of(model.config).prompt_side)
    episode = torch.tensor([prompt.episode for prompt in prompts], device=ids.device)
    read = [p.kv_cache.first(p.row, len(p.ids) - 1) for p in prompts if p.kv_cache is not None]
    with nullcontext() if edit is None else edit.applied(model, episode):
        return continue_greedily(
            model, ids, mask, length, prompts[0].answer_prefix, as_dynamic_cache(read) if read else None
        )


@torch.no_grad()
def continue_greedily(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    length: int,
    answer_prefix: Sequence[int] = (),
    cache: DynamicCache | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt, without the end-of-text token and what follows it.

    Args:
        model: the model, with an edit applied or without.
        ids: `[B, T]` prompts, padded on the left; for an encoder-decoder model on the right.
        mask: `[B, T]` ones at their tokens.
        length: most tokens to generate.
        answer_prefix: special tokens that an encoder-decoder model reads before any answer.
        cache: keys and values of all tokens but the last.
    """
    generator: Any = model  # mypy takes the mixin's method for a tensor
    start, arguments = as_family(model).start(ids, answer_prefix, cache)
    with _greedy(model):
        output = generator.generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, **arguments)
    ends = _end_ids(model)
    return [_until_end(row, ends) for row in output[:, start.shape[1] :].tolist()]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """`ids` before the first end-of-text token. Cut there: what pads the rest may be an ordinary token."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _end_ids(model: PreTrainedModel) -> set[int]:
    """The model's end-of-text tokens; some have several, some none."""
    ends = _shipped(model).eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _pad_id(model: PreTrainedModel) -> int:
    """What fills a row; any token does, because it is masked before the prompt and cut off after the end."""
    return _shipped(model).pad_token_id or 0


def _shipped(model: PreTrainedModel) -> Any:
    """The generation settings the model ships with."""
    return model.generation_config


@contextmanager
def _greedy(model: PreTrainedModel) -> Iterator[None]:
    """Set aside the generation settings the model ships with: sampling, penalties, beams."""
    shipped = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=_shipped(model).eos_token_id,
        pad_token_id=_pad_id(model),
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    try:
        yield
    finally:
        model.generation_config = shipped


@dataclass
class _Prompt:
    """A text up to its answer, and on up to what is generated already.

    Args:
        ids: `[T]` prompt and generated tokens.
        generated: the generated tokens.
        missing: how many more to generate.
        episode: whose edit it gets.
        answer_prefix: the special tokens that come before the answer (encoder-decoder models).
        row: its row in its batch.
        kv_cache: of its batch, where the model has read all of `ids` but the last.
    """

    ids: Tensor
    generated: list[int]
    missing: int
    episode: int
    answer_prefix: list[int]
    row: int
    kv_cache: KVCache | None


def _prompts(batch: TokenBatch, continuation: Continuation | None, extra_tokens: int) -> list[_Prompt]:
    """Each text's prompt. It ends where the first answer token is predicted; a text may go on after its answer."""
    counts = torch.bincount(batch.rows, minlength=batch.num_texts).tolist()
    lengths = batch.prompt_lengths()
    ids = Compact(batch).input_ids
    prefix = batch.answer_prefix()
    starts = _starts(batch, continuation)
    prompts = []
    for row, (length, count, episode) in enumerate(zip(lengths.tolist(), counts, batch.episode.tolist(), strict=True)):
        start = starts[row]
        text = torch.cat([ids[row, :length], ids.new_tensor(start)])
        missing = count + extra_tokens - len(start)
        prompts.append(
            _Prompt(text, start, missing, episode, prefix, row, continuation.kv_cache if continuation else None)
        )
    return prompts


def _starts(batch: TokenBatch, continuation: Continuation | None) -> list[list[int]]:
    """Each text's known generated tokens: the predicted ones, up to the first that is not the answer's."""
    starts: list[list[int]] = [[] for _ in range(batch.num_texts)]
    if continuation is None:
        return starts
    wrong = [False] * batch.num_texts
    for row, token, target in zip(
        batch.rows.tolist(), continuation.predicted.tolist(), batch.targets.tolist(), strict=True
    ):
        if not wrong[row]:
            starts[row].append(token)
        wrong[row] |= token != target
    return starts
