"""Whole answers: what a model says to a prompt as it is typed, up to where an answer ends by itself.

Shape legend: B texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from editors.base_models.loading import longest_text
from editors.lm.frozen import FrozenLM
from editors.lm.generation import Ending
from editors.texts.batches import EncodedText, Text, TokenBatch, collate_texts
from editors.texts.encoders import EncodedPair, collate_pairs
from editors.texts.padding import PAD_ID

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TOKENS = 32

# A full stop behind one or two letters ("St. Louis", "D.C.") ends no sentence. White space has to follow: only then it
# is known that the sentence does not go on ("2.5"); Chinese and Japanese have none.
_CLOSING = "[)\\]\"'\u201d\u2019]"
_END = re.compile(
    rf"\n|(?:(?<=\w\w\w)\.|(?<=\d)\.|(?<={_CLOSING})\.|(?<=\w)[!?]){_CLOSING}*(?=\s)|[\u3002\uff01\uff1f]"
)

# Titles and abbreviations of three letters or more whose full stop ends no sentence, and the number of a list's line.
_SHORT = "mrs|prof|sgt|gen|col|capt|cpl|maj|adm|gov|sen|rep|rev|hon|bros|inc|corp|ltd|etc"
_GOES_ON = re.compile(rf"\b(?:{_SHORT})\Z|\A\W*\d\d?\Z", re.IGNORECASE)


def natural_answer(text: str, wanted: str = "") -> str:
    r"""`text` up to the first end of a line or of a sentence, without white space around it.

    Args:
        text: what a model says.
        wanted: the answer it is compared with; an end that this one has inside comes too early.

    >>> natural_answer(" St. Louis. It lies on the Mississippi.")
    'St. Louis.'
    >>> natural_answer("\n\n2.5 metres\nand more")
    '2.5 metres'
    >>> natural_answer("Yahoo! Inc\nand more", "Yahoo! Inc")
    'Yahoo! Inc'
    """
    end = _end(text.lstrip(), wanted)
    return text.lstrip()[:end].strip()


def ends_inside(wanted: str) -> bool:
    """Whether an answer that says `wanted` would be cut before its end.

    >>> ends_inside("Yahoo! Inc"), ends_inside("Warner Bros. Records")
    (True, False)
    """
    return natural_answer(wanted) != wanted.strip()


def _end(text: str, wanted: str = "") -> int | None:
    """Where the answer in `text` ends; an end such as `wanted` has inside counts only behind as much text as that."""
    whole = len(wanted.strip())
    least = {kind: whole for end, kind in _ends(wanted.strip()) if end < whole}
    return next((end for end, kind in _ends(text) if end >= least.get(kind, 0)), None)


def _ends(text: str) -> Iterator[tuple[int, Literal["line", "sentence"]]]:
    """Each place before the end of a line, or behind a sentence."""
    for found in _END.finditer(text):
        if found[0] == "\n":
            yield found.start(), "line"
        elif found[0][0] != "." or not _GOES_ON.search(text[: found.start()]):
            yield found.end(), "sentence"


def natural_ending(tokenizer: PreTrainedTokenizerBase, wanted: str = "") -> Ending:
    """Answers end where `natural_answer` cuts them, and have at most `MOST_TOKENS` tokens.

    Args:
        tokenizer: the base model's.
        wanted: the answer they are all compared with, where it has an end inside.
    """

    def ended(ids: Sequence[int]) -> bool:
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        return _end(text.lstrip(), wanted) is not None

    return Ending(MOST_TOKENS, ended)


def has_room(lm: FrozenLM, prompts: Sequence[str], beside: int = 0) -> list[bool]:
    """For each prompt, whether the model can read it and give a whole answer.

    Args:
        lm: the base model.
        prompts: as they are typed.
        beside: tokens that it may have to read beside the prompt, such as an edit in memory.
    """
    limit = longest_text(lm.model)
    lengths = [len(ids) for ids in lm.texts.prompt_ids(prompts)]
    room = None if limit is None else lm.family.longest_prompt(limit, MOST_TOKENS)
    return [room is None or 0 < length <= room - beside for length in lengths]


def answered(
    lm: FrozenLM, prompts: Sequence[str], answers: Sequence[Sequence[int]], episode: Sequence[int]
) -> TokenBatch:
    """Prompts as they are typed, followed by answers in tokens, such as the model itself has said.

    Args:
        lm: the base model.
        prompts: B of them.
        answers: the tokens of each answer; at least one.
        episode: whose edit each text gets.
    """
    prefix = lm.texts.answer_prefix
    read = lm.texts.prompt_ids(prompts)
    if lm.family.has_encoder:
        labels = [(*prefix, *answer) for answer in answers]
        pairs = [EncodedPair(tuple(p), a, len(prefix)) for p, a in zip(read, labels, strict=True)]
        tokens = collate_pairs(pairs, episode, PAD_ID)
    else:
        whole = [(*p, *a) for p, a in zip(read, answers, strict=True)]
        spans = [EncodedText(ids, len(p), len(ids)) for p, ids in zip(read, whole, strict=True)]
        tokens = collate_texts(spans, episode, PAD_ID)
    said = lm.tokenizer.batch_decode([list(answer) for answer in answers], skip_special_tokens=True)
    tokens.texts = tuple(Text(*pair) for pair in zip(prompts, said, strict=True))
    return tokens.to(lm.model.device)
