"""Greedy generation: of plain prompts, and of the prompts of token batches, with or without an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from editors.base_models.families.lookup import as_family, family_of
from editors.edits.protocol import Edit
from editors.lm.batching.bucketing import cheapest_buckets
from editors.lm.batching.compact import Compact
from editors.lm.batching.costs import pass_cost
from editors.lm.kv_cache import KVCache, as_dynamic_cache
from editors.texts.batches import TokenBatch
from editors.texts.padding import PAD_ID, padded_texts

# How many tokens are generated before texts that have ended by then are left out of the passes.
_ROUND = 8


@dataclass(frozen=True)
class Ending:
    """Where answers end, beside the model's own end of text.

    Args:
        most: most tokens of an answer, whatever the length of the batch's.
        ended: whether an answer with these tokens has ended.
    """

    most: int
    ended: Callable[[Sequence[int]], bool]


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
    ending: Ending | None = None,
    *,
    sharded: bool = False,
) -> list[list[list[int]]]:
    """Greedy continuation of each text's prompt; see `FrozenLM.generate`.

    Texts of all batches are run together, in buckets by how much there is to generate: a pass reads all weights for one
    more token of each text, so few long passes with many texts are cheapest.
    """
    starts: Sequence[Continuation | None] = continuations or [None] * len(batches)
    prompts = [p for pair in zip(batches, starts, strict=True) for p in _prompts(*pair, extra_tokens, ending)]
    ends = _end_ids(model)
    generated = [_until_ended(_until_end(prompt.generated, ends), ending) for prompt in prompts]
    # The processes of a sharded model go on with finished texts as well: otherwise one might have none left.
    finished = [generated[i] != p.generated or _has_ended(ending, generated[i]) for i, p in enumerate(prompts)]
    open_ends = [i for i, prompt in enumerate(prompts) if prompt.missing and (sharded or not finished[i])]
    in_rounds = ending is not None and not sharded and _reads_on(model, edit)
    while open_ends:
        outputs = _generate_all(
            model, [prompts[i] for i in open_ends], edit, ending, _ROUND if in_rounds else None, sharded=sharded
        )
        going_on = []
        for i, output in zip(open_ends, outputs, strict=True):
            if finished[i]:
                continue
            generated[i] = [*prompts[i].generated, *output]
            if in_rounds and len(output) == _ROUND < prompts[i].missing and not _has_ended(ending, generated[i]):
                prompts[i] = prompts[i].longer_by(output)
                going_on.append(i)
        open_ends = going_on
    counts = [batch.num_texts for batch in batches]
    return [generated[sum(counts[:b]) : sum(counts[: b + 1])] for b in range(len(counts))]


def _reads_on(model: PreTrainedModel, edit: Edit | None) -> bool:
    """Whether an answer goes on as it would have, where its beginning is read as the end of the prompt.

    It does not where an encoder reads the prompt, or where the edit decides by it.
    """
    return not family_of(model.config).has_encoder and (edit is None or edit.keeps_prefix)


def _until_ended(generated: list[int], ending: Ending | None) -> list[int]:
    """The first tokens that are a whole answer, or all."""
    if ending is None:
        return generated
    ended = (count for count in range(1, len(generated) + 1) if ending.ended(generated[:count]))
    return generated[: min(ending.most, next(ended, ending.most))]


def _has_ended(ending: Ending | None, generated: Sequence[int]) -> bool:
    return ending is not None and ending.ended(generated)


def _generate_all(
    model: PreTrainedModel,
    prompts: Sequence[_Prompt],
    edit: Edit | None,
    ending: Ending | None,
    most: int | None,
    *,
    sharded: bool,
) -> list[list[int]]:
    """What comes after each prompt, up to `most` of the missing tokens, in buckets that together cost the least."""
    missing = [prompt.missing if most is None else min(most, prompt.missing) for prompt in prompts]
    extra = pass_cost(prompts[0].ids.device, sharded=sharded)
    outputs: list[list[int]] = [[] for _ in prompts]
    for bucket in cheapest_buckets(missing, lambda texts, length: length * (extra + texts), sharded=sharded):
        length = max(missing[i] for i in bucket)
        for i, output in zip(
            bucket, _generate_bucket(model, [prompts[i] for i in bucket], edit, length, ending), strict=True
        ):
            outputs[i] = output[: missing[i]]
    return outputs


def _generate_bucket(
    model: PreTrainedModel, prompts: Sequence[_Prompt], edit: Edit | None, length: int, ending: Ending | None
) -> list[list[int]]:
    """Up to `length` tokens after each prompt, all prompts in one batch."""
    ids, mask = padded_texts([prompt.ids for prompt in prompts], PAD_ID, family_of(model.config).prompt_side)
    episode = torch.tensor([prompt.episode for prompt in prompts], device=ids.device)
    read = [p.kv_cache.first(p.row, p.read) for p in prompts if p.kv_cache is not None]
    cache = as_dynamic_cache(read) if read else None

    def ended(row: int, new: Sequence[int]) -> bool:
        return _has_ended(ending, [*prompts[row].generated, *new])

    with nullcontext() if edit is None else edit.applied(model, episode):
        return continue_greedily(
            model, ids, mask, length, prompts[0].answer_prefix, cache, None if ending is None else ended
        )


@torch.no_grad()
def continue_greedily(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    length: int,
    answer_prefix: Sequence[int] = (),
    cache: DynamicCache | None = None,
    ended: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Greedy continuation of each prompt, without the end-of-text token and what follows it.

    Args:
        model: the model, with an edit applied or without.
        ids: `[B, T]` prompts, padded on the left; for an encoder-decoder model on the right.
        mask: `[B, T]` ones at their tokens.
        length: most tokens to generate.
        answer_prefix: special tokens that an encoder-decoder model reads before any answer.
        cache: keys and values of the first tokens, all but the last where a prompt is read for the first time.
        ended: whether the continuation of a row, given by its number, has ended with these tokens; they are its last.
    """
    generator: Any = model  # mypy takes the mixin's method for a tensor
    start, arguments = as_family(model).start(ids, answer_prefix, cache)
    stops = _Stops(start.shape[1], ended) if ended is not None else None
    if stops is not None:
        arguments["stopping_criteria"] = StoppingCriteriaList([stops])
    with _greedy(model):
        output = generator.generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, **arguments)
    ends = _end_ids(model)
    rows = output[:, start.shape[1] :].tolist()
    if stops is not None:
        rows = [row[: stops.lengths.get(number)] for number, row in enumerate(rows)]
    return [_until_end(row, ends) for row in rows]


class _Stops(StoppingCriteria):
    """Stops each row where it has ended.

    Args:
        start: how many tokens there were before.
        ended: whether a row has ended with its new tokens.
    """

    def __init__(self, start: int, ended: Callable[[int, Sequence[int]], bool]) -> None:
        self._start, self._ended = start, ended
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:  # noqa: ARG002 - the library's signature
        for number, row in enumerate(input_ids[:, self._start :].tolist()):
            if number not in self.lengths and self._ended(number, row):
                self.lengths[number] = len(row)
        done = [number in self.lengths for number in range(len(input_ids))]
        return torch.tensor(done, device=input_ids.device)


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """`ids` before the first end-of-text token. Cut there: what pads the rest may be an ordinary token."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def _end_ids(model: PreTrainedModel) -> set[int]:
    """The model's end-of-text tokens; some have several, some none."""
    ends = _shipped(model).eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _shipped(model: PreTrainedModel) -> Any:
    """The generation settings the model ships with."""
    return model.generation_config


@contextmanager
def _greedy(model: PreTrainedModel) -> Iterator[None]:
    """Set aside the generation settings the model ships with: sampling, penalties, beams."""
    shipped = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=_shipped(model).eos_token_id,
        pad_token_id=PAD_ID,  # any token does: it is cut off after the end
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
        kv_cache: of its batch, where the model has read the first of `ids`.
        read: how many that are; the same number less than `ids` for all prompts of a pass.
    """

    ids: Tensor
    generated: list[int]
    missing: int
    episode: int
    answer_prefix: list[int]
    row: int
    kv_cache: KVCache | None
    read: int

    def longer_by(self, ids: list[int]) -> _Prompt:
        """The text with further generated tokens."""
        longer = torch.cat([self.ids, self.ids.new_tensor(ids)])
        return replace(self, ids=longer, generated=[*self.generated, *ids], missing=self.missing - len(ids))


def _prompts(
    batch: TokenBatch, continuation: Continuation | None, extra_tokens: int, ending: Ending | None
) -> list[_Prompt]:
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
        missing = max(0, (count + extra_tokens if ending is None else ending.most) - len(start))
        cache = continuation.kv_cache if continuation else None
        prompts.append(_Prompt(text, start, missing, episode, prefix, row, cache, len(text) - 1))
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
