"""From texts to token batches: the joint encoding of prompt and answer, and padding.

Shape legend: B texts, T tokens, A tokens of an answer (both padded), N answer tokens of the whole batch, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from editors.common.errors import EditorError
from editors.texts.padding import padded_texts
from editors.texts.prompts import first_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PaddingSide = Literal["left", "right"]
# Ids, character offsets, prompt and answer of one text.
_Encoding = tuple[Sequence[int], Sequence[tuple[int, int]], str, str]
MODEL_LIMIT = "the base model's limit"
# What fills the labels of an encoder-decoder model behind an answer: Hugging Face models know it.
IGNORED = -100


class Text(NamedTuple):
    """A prompt and its answer, in words."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class EncodedText:
    """The token ids of one text and the half-open span of its answer tokens.

    >>> text = EncodedText((5, 6, 7, 8), answer_start=2, answer_end=4)
    >>> text.read, text.answer
    ((5, 6, 7), (7, 8))
    """

    ids: tuple[int, ...]
    answer_start: int
    answer_end: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def read(self) -> tuple[int, ...]:
        """What the model has to read: the last answer token, and any after it, predict nothing that is scored."""
        return self.ids[: self.answer_end - 1]

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer tokens."""
        return self.ids[self.answer_start : self.answer_end]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[str, str]],
    max_length: int | None = None,
    limit_name: str = MODEL_LIMIT,
    end_id: int | None = None,
) -> list[EncodedText]:
    """Encode each `(prompt, answer)` jointly as "prompt answer" and mark the answer's tokens by character offsets.

    Behind a prompt that ends in white space, as a chat template does, the answer stands without a space.

    Encoding the answer alone gives other ids for most tokenizers (a leading space, a merge across the boundary), and a
    beginning-of-text token would become a label; so neither is done.

    Args:
        tokenizer: a fast tokenizer (character offsets are needed).
        pairs: prompts with their answers.
        max_length: longest text in tokens; `None` for no limit.
        limit_name: the name of what sets `max_length`, for the error message.
        end_id: a token that ends every answer, as part of it; `None` for none.

    Raises:
        EditorError: the tokenizer is not a fast one, an answer yields no token, or a text is too long.
    """
    return [_mark_answer(encoding, max_length, limit_name, end_id) for encoding in _encodings(tokenizer, pairs)]


def encoding_faults(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[tuple[str, str]],
    max_length: int | None = None,
    limit_name: str = MODEL_LIMIT,
    end_id: int | None = None,
) -> list[str]:
    """For each pair why `encode_answers` would refuse it; empty where it would not.

    Raises:
        EditorError: the tokenizer is not a fast one.
    """
    return [_fault(encoding, max_length, limit_name, end_id) for encoding in _encodings(tokenizer, pairs)]


def _fault(encoding: _Encoding, max_length: int | None, limit_name: str, end_id: int | None) -> str:
    try:
        _mark_answer(encoding, max_length, limit_name, end_id)
    except EditorError as error:
        return str(error)
    return ""


def _encodings(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]]) -> Iterator[_Encoding]:
    pairs = list(pairs)
    if not pairs:
        return
    if not tokenizer.is_fast:
        raise EditorError(
            f"{type(tokenizer).__name__} gives no character offsets; load a fast tokenizer (use_fast=True) instead"
        )
    texts = [_joined(*pair) for pair in pairs]
    encoding = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    parts = (encoding[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
    for ids, offsets, special, pair in zip(*parts, pairs, strict=True):
        start = first_read(ids, special)
        yield ids[start:], offsets[start:], *pair


def _joined(prompt: str, answer: str) -> str:
    separator = "" if prompt[-1:].isspace() else " "
    return f"{prompt}{separator}{answer.strip()}"


def _mark_answer(
    encoding: _Encoding, max_length: int | None, limit_name: str, end_id: int | None = None
) -> EncodedText:
    ids, offsets, prompt, answer = encoding
    length = len(ids) + (end_id is not None)
    if max_length is not None and length > max_length:
        raise EditorError(
            f"prompt {prompt[:60]!r} with its answer has {length} tokens, but {limit_name} is {max_length}"
        )
    # Special tokens have the span (0, 0): they are never part of the answer. A token that is only the space before the
    # answer may have an empty span behind that space, and is part of it.
    marked = [i for i, (_, end) in enumerate(offsets) if end > len(prompt)]
    if not marked or not answer.strip():
        raise EditorError(f"answer {answer!r} of prompt {prompt!r} yields no token")
    if marked[0] == 0:
        raise EditorError(f"prompt {prompt!r} yields no token before the answer {answer!r}")
    end = marked[-1] + 1
    if end_id is None:
        return EncodedText(tuple(ids), marked[0], end)
    return EncodedText((*ids[:end], end_id), marked[0], end + 1)


def token_positions(attention_mask: Tensor) -> Tensor:
    """`[B, T]` position of each token counted over real tokens only, so that the padding side does not matter.

    >>> token_positions(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])).tolist()
    [[0, 1, 2, 2], [0, 0, 1, 2]]
    """
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


@dataclass
class TokenBatch:
    """Texts ready for the base model, with the places that predict answers.

    A decoder-only model reads prompt and answer, up to the last answer token but one, as one text, and `labels` is
    `None`. The encoder of an encoder-decoder model reads the prompt alone; its decoder shifts `labels` itself.

    Args:
        input_ids: `[B, T]` token ids.
        attention_mask: `[B, T]`, 1 for real tokens, 0 for padding (either side; on the right where there are labels).
        positions: `[N]` places in the flattened `[B * T]` tokens (where there are labels, in those: `[B * A]`) whose
            logits predict an answer token.
        targets: `[N]` the answer token ids.
        rows: `[N]` the text each answer token belongs to.
        episode: `[B]` the episode each text belongs to; non-decreasing.
        labels: `[B, A]` each text's answer, not shifted, with the special tokens around it; `IGNORED` behind it.
        texts: the B prompts with their answers, in words; none where tokens were put together from numbers.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    rows: Tensor
    episode: Tensor
    labels: Tensor | None = None
    texts: tuple[Text, ...] = ()

    @property
    def num_texts(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    def position_ids(self) -> Tensor:
        """`[B, T]` position of each token, see `token_positions`."""
        return token_positions(self.attention_mask)

    def answer_episode(self) -> Tensor:
        """`[N]` the episode each answer token belongs to."""
        return self.episode[self.rows]

    @property
    def written(self) -> Tensor:
        """The tokens in which `positions` count: the labels `[B, A]` where there are any, else all `[B, T]`."""
        return self.input_ids if self.labels is None else self.labels

    def prompt_lengths(self) -> Tensor:
        """`[B]` how many tokens each text has up to its answer, special ones included."""
        lengths = self.attention_mask.sum(dim=1)
        if self.labels is not None:
            return lengths
        ends = self.position_ids().flatten()[self.positions] + 1
        return lengths.scatter_reduce(0, self.rows, ends, "amin")

    def prompt_ids(self) -> list[list[int]]:
        """The token ids of each text up to its answer, special tokens included."""
        rows = zip(self.input_ids, self.attention_mask, self.prompt_lengths().tolist(), strict=True)
        return [ids[mask.bool()][:end].tolist() for ids, mask, end in rows]

    def answer_prefix(self) -> list[int]:
        """The special tokens that come before every answer of the batch; none for a decoder-only model."""
        if self.labels is None or not self.num_texts:
            return []
        row = self.rows[0]
        return self.labels[row, : self.positions[0] - row * self.labels.shape[1]].tolist()

    def answer_ids(self) -> list[list[int]]:
        """The token ids of each text's answer."""
        return [self.targets[self.rows == row].tolist() for row in range(self.num_texts)]

    def without_last_answer_token(self) -> TokenBatch:
        """The same texts, but the last token of each answer is not predicted; every answer has two or more."""
        keep = torch.ones_like(self.rows, dtype=torch.bool)
        keep[:-1] = self.rows[1:] == self.rows[:-1]
        keep[-1:] = False
        return replace(self, positions=self.positions[keep], targets=self.targets[keep], rows=self.rows[keep])

    def select(self, chosen: Tensor) -> TokenBatch:
        """Some of the texts, as wide as before.

        Args:
            chosen: `[B]` booleans.
        """
        answers = chosen[self.rows]
        rows = (chosen.cumsum(dim=0) - 1)[self.rows[answers]]
        width = self.written.shape[1]
        return TokenBatch(
            self.input_ids[chosen],
            self.attention_mask[chosen],
            rows * width + self.positions[answers] % width,
            self.targets[answers],
            rows,
            self.episode[chosen],
            None if self.labels is None else self.labels[chosen],
            tuple(text for text, own in zip(self.texts, chosen.tolist(), strict=True) if own) if self.texts else (),
        )

    def columns(self) -> slice:
        """The columns of `input_ids` in which any text has a token."""
        used = self.attention_mask.any(dim=0).nonzero()[:, 0].tolist()
        return slice(used[0], used[-1] + 1) if used else slice(0, 0)

    def narrowed(self) -> TokenBatch:
        """The same texts without the columns that are padding in all of them."""
        read = self.columns()
        written = read if self.labels is None else slice(0, int((self.labels != IGNORED).any(dim=0).sum()))
        places = self.positions % self.written.shape[1] - written.start
        return replace(
            self,
            input_ids=self.input_ids[:, read],
            attention_mask=self.attention_mask[:, read],
            positions=self.rows * (written.stop - written.start) + places,
            labels=None if self.labels is None else self.labels[:, written],
        )

    def to(self, device: torch.device | str, **kwargs: Any) -> TokenBatch:
        """A copy on `device`; Lightning calls this."""
        return self._map(lambda tensor: tensor.to(device, **kwargs))

    def outside_inference_mode(self) -> TokenBatch:
        """The same batch in tensors that autograd may save (Lightning moves data in inference mode)."""
        return self._map(autograd_safe)

    def _map(self, function: Callable[[Tensor], Tensor]) -> TokenBatch:
        def mapped(value: Any) -> Any:
            return function(value) if isinstance(value, Tensor) else value

        return TokenBatch(**{f.name: mapped(getattr(self, f.name)) for f in fields(self)})


def autograd_safe(tensor: Tensor) -> Tensor:
    """`tensor` such that autograd may save it; a copy, if it was made in inference mode."""
    # A clone made in inference mode would again be an inference tensor.
    with torch.inference_mode(mode=False):
        return tensor.clone() if tensor.is_inference() else tensor


def collate_texts(
    texts: Sequence[EncodedText],
    episode: Sequence[int],
    pad_id: int,
    padding_side: PaddingSide = "right",
) -> TokenBatch:
    """Pad `texts` into one `TokenBatch`; text `i` belongs to episode `episode[i]` (non-decreasing)."""
    input_ids, mask = padded_texts([text.read for text in texts], pad_id, padding_side)
    width = input_ids.shape[1]
    positions: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for row, text in enumerate(texts):
        start = width - len(text.read) if padding_side == "left" else 0
        # The logits at a token predict the next one.
        first = row * width + start + text.answer_start - 1
        positions.extend(range(first, first + len(text.answer)))
        targets.extend(text.answer)
        rows.extend([row] * len(text.answer))
    numbers = (torch.tensor(values, dtype=torch.long) for values in (positions, targets, rows, list(episode)))
    return TokenBatch(input_ids, mask, next(numbers), next(numbers), next(numbers), next(numbers))
