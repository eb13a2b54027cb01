"""Greedy generation: of plain prompts, and of the prompts of token batches, with or without an edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from editors.base_models.encoder_decoder import answer_prefix, decoder_start, is_encoder_decoder
from editors.edits.low_rank import Edit
from editors.lm.batching.text_groups import Compact, groups, pass_cost
from editors.lm.kv_cache import KeyValues, as_cache
from editors.texts.batches import TokenBatch


@dataclass
class Begun:
    """What a pass over prompts and answers has left of a batch: where greedy generation can go on.

    Args:
        predicted: `[N]` the tokens it preferred at the answer positions. Up to the first one that is not the answer's,
            they are what the model generates.
        key_values: of the texts.
    """

    predicted: Tensor
    key_values: KeyValues


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    batches: Sequence[TokenBatch],
    edit: Edit | None = None,
    extra_tokens: int = 0,
    begun: Sequence[Begun] | None = None,
    *,
    in_step: bool = False,
) -> list[list[list[int]]]:
    """Greedy continuation of each text's prompt; see `FrozenLM.generate`.

    Texts of all batches are run together, grouped by how much there is to generate: a pass reads all weights for one
    more token of each text, so few long passes with many texts are cheapest.
    """
    starts: Sequence[Begun | None] = begun or [None] * len(batches)
    prompts = [prompt for pair in zip(batches, starts, strict=True) for prompt in _prompts(*pair, extra_tokens)]
    ends = _end_ids(model)
    generated = [_until_end(prompt.begun, ends) for prompt in prompts]
    extra = pass_cost(batches[0].input_ids.device, in_step=in_step) if batches else 0
    # Processes that share the model go on with finished texts as well: otherwise one might have none left.
    finished = [generated[i] != prompt.begun for i, prompt in enumerate(prompts)]
    open_ends = [i for i, prompt in enumerate(prompts) if prompt.missing and (in_step or not finished[i])]
    missing = [prompts[i].missing for i in open_ends]
    for group in groups(missing, lambda texts, length: length * (extra + texts), in_step=in_step):
        chosen = [prompts[open_ends[i]] for i in group]
        outputs = _generate_group(model, chosen, edit, max(prompt.missing for prompt in chosen))
        for i, output in zip(group, outputs, strict=True):
            row = open_ends[i]
            if not finished[row]:
                generated[row] = [*prompts[row].begun, *output[: missing[i]]]
    counts = [batch.num_texts for batch in batches]
    return [generated[sum(counts[:b]) : sum(counts[: b + 1])] for b in range(len(counts))]


def _generate_group(
    model: PreTrainedModel, prompts: Sequence[_Prompt], edit: Edit | None, length: int
) -> list[list[int]]:
    """Up to `length` tokens after each prompt, all prompts in one batch."""
    device = prompts[0].ids.device
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), _pad_id(model), device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # A decoder goes on behind its prompt; an encoder may count positions from the left edge (BART's does).
        start = 0 if is_encoder_decoder(model) else width - len(prompt.ids)
        ids[row, start : start + len(prompt.ids)] = prompt.ids
        mask[row, start : start + len(prompt.ids)] = 1
    episode = torch.tensor([prompt.episode for prompt in prompts], device=device)
    read = [p.key_values.first(p.row, len(p.ids) - 1) for p in prompts if p.key_values is not None]
    with nullcontext() if edit is None else edit.applied(model, episode):
        return continue_greedily(model, ids, mask, length, prompts[0].answer_prefix, as_cache(read) if read else None)


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
    start = ids
    inputs: dict[str, Any] = {} if cache is None else {"cache": cache}
    if is_encoder_decoder(model):
        start = decoder_start(model, len(ids), answer_prefix)
        inputs = {"decoder_input_ids": start}
    with _greedy(model):
        output = generator.generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, **inputs)
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
        begun: the generated tokens.
        missing: how many more to generate.
        episode: whose edit it gets.
        answer_prefix: the special tokens that come before the answer (encoder-decoder models).
        row: its row in its batch.
        key_values: those of its batch, where the model has read all of `ids` but the last.
    """

    ids: Tensor
    begun: list[int]
    missing: int
    episode: int
    answer_prefix: list[int]
    row: int
    key_values: KeyValues | None


def _prompts(batch: TokenBatch, begun: Begun | None, extra_tokens: int) -> list[_Prompt]:
    """Each text's prompt. It ends where the first answer token is predicted; a text may go on after its answer."""
    counts = torch.bincount(batch.rows, minlength=batch.num_texts).tolist()
    lengths = batch.attention_mask.sum(dim=1)
    if batch.labels is None:
        ends = batch.position_ids().flatten()[batch.positions] + 1
        lengths = lengths.scatter_reduce(0, batch.rows, ends, "amin")
    ids = Compact(batch).input_ids
    prefix = answer_prefix(batch)
    starts = _starts(batch, begun)
    prompts = []
    for row, (length, count, episode) in enumerate(zip(lengths.tolist(), counts, batch.episode.tolist(), strict=True)):
        start = starts[row]
        text = torch.cat([ids[row, :length], ids.new_tensor(start)])
        missing = count + extra_tokens - len(start)
        prompts.append(_Prompt(text, start, missing, episode, prefix, row, begun.key_values if begun else None))
    return prompts


def _starts(batch: TokenBatch, begun: Begun | None) -> list[list[int]]:
    """Each text's known generated tokens: the predicted ones, up to the first that is not the answer's."""
    starts: list[list[int]] = [[] for _ in range(batch.num_texts)]
    if begun is None:
        return starts
    wrong = [False] * batch.num_texts
    for row, token, target in zip(batch.rows.tolist(), begun.predicted.tolist(), batch.targets.tolist(), strict=True):
        if not wrong[row]:
            starts[row].append(token)
        wrong[row] |= token != target
    return starts
