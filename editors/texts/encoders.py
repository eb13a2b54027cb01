"""From prompts and answers to token batches, for both families of base models.

A decoder-only model reads prompt and answer as one text. An encoder-decoder model reads the prompt with its encoder and
writes the answer with its decoder, so the two are encoded apart.

Shape legend: B texts, T tokens, A answer tokens (both padded).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from editors.common.errors import EditorError
from editors.texts.batches import (
    IGNORED,
    MODEL_LIMIT,
    PaddingSide,
    Text,
    TokenBatch,
    collate_texts,
    encode_answers,
    encoding_faults,
)
from editors.texts.episodes import RequestBatch
from editors.texts.forms import in_form
from editors.texts.padding import PAD_ID, padded, padded_texts
from editors.texts.prompts import closed_ids, prompt_ids
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Pairs = Sequence[tuple[str, str]]


class TextEncoder(ABC):
    """Encodes and pads the texts of one base model.

    Args:
        tokenizer: the base model's.
    """

    prompt_side: ClassVar[PaddingSide]
    """Where prompts alone are padded, so that the model can go on writing behind all of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def batch(
        self,
        pairs: _Pairs,
        episode: Sequence[int],
        max_length: int | None = None,
        limit_name: str = MODEL_LIMIT,
        padding_side: PaddingSide = "right",
    ) -> TokenBatch:
        """Prompts with their answers.

        Args:
            pairs: `(prompt, answer)` of each text.
            episode: the episode of each text; non-decreasing.
            max_length: longest text in tokens; `None` for no limit.
            limit_name: the name of what sets `max_length`, for the error message.
            padding_side: where to pad; it changes no result.

        Raises:
            EditorError: an answer yields no token, or a text is too long.
        """

    @abstractmethod
    def faults(self, pairs: _Pairs, max_length: int | None = None, limit_name: str = MODEL_LIMIT) -> list[str]:
        """For each pair why `batch` would refuse it; empty where it would not."""

    def requests(
        self,
        episodes: Sequence[Sequence[EditRequest]],
        max_length: int | None = None,
        limit_name: str = MODEL_LIMIT,
    ) -> RequestBatch:
        """Edit requests with their tokens, each in its form; arguments and errors are those of `batch`.

        Args:
            episodes: the requests of each episode.
            max_length: longest text in tokens; `None` for no limit.
            limit_name: the name of what sets `max_length`, for the error message.

        Raises:
            EditorError: as `batch`, or a request is in chat form and the model has no chat template.
        """
        requests = tuple(request for own in episodes for request in own)
        owner = [number for number, own in enumerate(episodes) for _ in own]
        pairs = [(in_form(self.tokenizer, request.prompt, request.form), request.target) for request in requests]
        return RequestBatch(requests, self.batch(pairs, owner, max_length, limit_name), len(episodes))

    def scored(self, tokens: TokenBatch) -> TokenBatch:
        """`tokens` of `batch` with those answer tokens to predict that metrics count."""
        return tokens

    @property
    def answer_prefix(self) -> tuple[int, ...]:
        """Special tokens that the model reads between the prompt and any answer."""
        return ()

    @abstractmethod
    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of prompts as the model reads them before an answer, special ones included."""

    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`[B, T]` ids and attention mask of prompts without an answer.

        Raises:
            EditorError: a prompt yields no token.
        """
        ids = self.prompt_ids(texts)
        for text, row in zip(texts, ids, strict=True):
            if not row:
                raise EditorError(f"prompt {text[:60]!r} yields no token, so nothing predicts an answer; give a text")
        return padded_texts(ids, PAD_ID, self.prompt_side)


class DecoderOnlyTexts(TextEncoder):
    """Prompt and answer as one text, "prompt answer"; see `encode_answers`.

    Args:
        tokenizer: the base model's.
        end_answers: put an end-of-text token behind every answer. Metrics do not count it, and published ones do
            not either.

    Raises:
        EditorError: answers are to be ended, and the tokenizer has no end-of-text token.
    """

    prompt_side = "left"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, end_answers: bool = False) -> None:
        super().__init__(tokenizer)
        if end_answers and tokenizer.eos_token_id is None:
            raise EditorError(
                f"base_model.end_answers: true needs an end-of-text token, and {type(tokenizer).__name__} has none; "
                "set it to false"
            )
        self._end_id: int | None = tokenizer.eos_token_id if end_answers else None

    def batch(
        self,
        pairs: _Pairs,
        episode: Sequence[int],
        max_length: int | None = None,
        limit_name: str = MODEL_LIMIT,
        padding_side: PaddingSide = "right",
    ) -> TokenBatch:
        """Prompt and answer as one text; refuses a prompt without a token too: nothing would predict its answer."""
        texts = encode_answers(self.tokenizer, pairs, max_length, limit_name, self._end_id)
        return _in_words(collate_texts(texts, episode, PAD_ID, padding_side), pairs)

    def faults(self, pairs: _Pairs, max_length: int | None = None, limit_name: str = MODEL_LIMIT) -> list[str]:
        """Of prompt and answer as one text, whose tokens are counted together."""
        return encoding_faults(self.tokenizer, pairs, max_length, limit_name, self._end_id)

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Without the end-of-text token that some tokenizers put behind every text: the answer follows."""
        return prompt_ids(self.tokenizer, texts)

    def scored(self, tokens: TokenBatch) -> TokenBatch:
        """All but the end-of-text token."""
        return tokens if self._end_id is None else tokens.without_last_answer_token()


def _in_words(tokens: TokenBatch, pairs: _Pairs) -> TokenBatch:
    return replace(tokens, texts=tuple(Text(*pair) for pair in pairs))


@dataclass(frozen=True)
class EncodedPair:
    """A prompt and its answer, both with their special tokens.

    Args:
        prompt: what the encoder reads.
        labels: what the decoder writes.
        answer_start: where in `labels` the answer starts, behind special tokens.
    """

    prompt: tuple[int, ...]
    labels: tuple[int, ...]
    answer_start: int


class EncoderDecoderTexts(TextEncoder):
    """Prompt and answer apart, each with the special tokens the tokenizer gives it.

    Special tokens before an answer (BART's `<s>`) are read by the decoder but are no part of the answer. The token that
    ends it is: the model has to predict it, or it would not stop. So it is in the code of the KE and MEND papers.
    """

    prompt_side = "right"

    def batch(
        self,
        pairs: _Pairs,
        episode: Sequence[int],
        max_length: int | None = None,
        limit_name: str = MODEL_LIMIT,
        padding_side: PaddingSide = "right",  # noqa: ARG002
    ) -> TokenBatch:
        """Prompts for the encoder, answers for the decoder; always padded on the right: BART counts from the left edge.

        `max_length` holds for prompt and answer each.
        """
        encoded = self._encode(pairs)
        for fault in filter(None, self._faults(pairs, encoded, max_length, limit_name)):
            raise EditorError(fault)
        return _in_words(collate_pairs(encoded, episode, PAD_ID), pairs)

    def faults(self, pairs: _Pairs, max_length: int | None = None, limit_name: str = MODEL_LIMIT) -> list[str]:
        """Of prompt and answer each."""
        return self._faults(pairs, self._encode(pairs), max_length, limit_name)

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """With all special tokens: a prompt is a whole text for the encoder."""
        return closed_ids(self.tokenizer, texts)

    @property
    def answer_prefix(self) -> tuple[int, ...]:
        """Special tokens that the decoder reads, after its start token, before any answer."""
        (pair,) = self._encode([("a", "a")])
        return pair.labels[: pair.answer_start]

    def _encode(self, pairs: _Pairs) -> list[EncodedPair]:
        if not pairs:
            return []
        prompts = self.prompt_ids([prompt for prompt, _ in pairs])
        answers = self.tokenizer(text_target=[answer.strip() for _, answer in pairs], return_special_tokens_mask=True)
        rows = zip(prompts, answers["input_ids"], answers["special_tokens_mask"], strict=True)
        # An answer of special tokens alone has no start.
        return [
            EncodedPair(tuple(prompt), tuple(labels), special.index(0) if 0 in special else len(labels))
            for prompt, labels, special in rows
        ]

    @staticmethod
    def _faults(pairs: _Pairs, encoded: Sequence[EncodedPair], max_length: int | None, limit_name: str) -> list[str]:
        return [_fault(*pair, ids, max_length, limit_name) for pair, ids in zip(pairs, encoded, strict=True)]


def _fault(prompt: str, answer: str, ids: EncodedPair, max_length: int | None, limit_name: str) -> str:
    if ids.answer_start == len(ids.labels):
        return f"answer {answer!r} of prompt {prompt!r} yields no token"
    for name, text, tokens in (("prompt", prompt, ids.prompt), ("answer", answer, ids.labels)):
        if max_length is not None and len(tokens) > max_length:
            return f"{name} {text[:60]!r} has {len(tokens)} tokens, but {limit_name} is {max_length}"
    return ""


def collate_pairs(pairs: Sequence[EncodedPair], episode: Sequence[int], pad_id: int) -> TokenBatch:
    """Pad `pairs` on the right into one batch; pair `i` belongs to episode `episode[i]` (non-decreasing)."""
    input_ids, mask = padded_texts([pair.prompt for pair in pairs], pad_id)
    labels = padded([pair.labels for pair in pairs], IGNORED)
    width = labels.shape[1]
    places = [(row, place) for row, p in enumerate(pairs) for place in range(p.answer_start, len(p.labels))]
    rows = torch.tensor([row for row, _ in places], dtype=torch.long)
    positions = torch.tensor([row * width + place for row, place in places], dtype=torch.long)
    owners = torch.tensor(list(episode), dtype=torch.long)
    return TokenBatch(input_ids, mask, positions, labels.flatten()[positions], rows, owners, labels)
