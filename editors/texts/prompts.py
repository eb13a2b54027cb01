"""What a model reads of a text: the tokenizer's special tokens once, and no end where something follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for an answer behind white space.
_ANSWER = "a"


def first_read(ids: Sequence[int], special: Sequence[int]) -> int:
    """Where in an encoded text the model starts to read: behind what the tokenizer adds, if the text has that itself.

    Args:
        ids: the text's tokens.
        special: ones at those that the tokenizer added.

    >>> first_read([0, 0, 5], [1, 0, 0]), first_read([0, 5, 6], [1, 0, 0])
    (1, 0)
    """
    added = special.index(0) if 0 in special else 0
    return added if ids[added : 2 * added] == ids[:added] else 0


def open_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts behind which more is read: they begin once, and do not end.

    A text that begins with the beginning-of-text token, as a rendered chat template does, gets no second one.

    Args:
        tokenizer: the model's.
        texts: as they are typed.
    """
    return [ids[first_read(ids, special) : _end(special)] for ids, special in _encoded(tokenizer, texts)]


def closed_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of whole texts, as an encoder reads them: they begin once, and end once."""
    return [ids[first_read(ids, special) : _last_read(ids, special)] for ids, special in _encoded(tokenizer, texts)]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of prompts, up to where an answer starts: those that prompt and answer have before the answer.

    White space at the end of a prompt may be the beginning of the answer's first token. So such a prompt is encoded
    with an answer behind it, as where edits are made and scored.

    Args:
        tokenizer: the model's.
        prompts: as they are typed.
    """
    found = open_ids(tokenizer, prompts)
    spaced = [row for row, prompt in enumerate(prompts) if prompt[-1:].isspace()]
    if not spaced or not tokenizer.is_fast:
        return found
    encoded = tokenizer(
        [prompts[row] + _ANSWER for row in spaced], return_offsets_mapping=True, return_special_tokens_mask=True
    )
    for number, row in enumerate(spaced):
        ids, offsets = encoded["input_ids"][number], encoded["offset_mapping"][number]
        end = next((place for place, (_, stop) in enumerate(offsets) if stop > len(prompts[row])), len(ids))
        found[row] = list(ids[first_read(ids, encoded["special_tokens_mask"][number]) : end])
    return found


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[tuple[list[int], list[int]]]:
    """Each text's tokens, and ones at those that the tokenizer added."""
    if not texts:
        return
    encoded = tokenizer(list(texts), return_special_tokens_mask=True)
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        yield list(ids), list(special)


def _end(special: Sequence[int]) -> int:
    """Where the text itself ends: before what the tokenizer added behind it; a text of no token has no end."""
    return len(special) - (special[::-1].index(0) if 0 in special else 0)


def _last_read(ids: Sequence[int], special: Sequence[int]) -> int:
    """Where an encoder stops to read: before what the tokenizer added behind the text, if the text has that itself."""
    end = _end(special)
    added = len(ids) - end
    return end if ids[end - added : end] == ids[end:] else len(ids)
