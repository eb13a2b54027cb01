"""A prompt in other words of the same meaning, or of nearly the same: as users type it."""

from __future__ import annotations

import random
import re

_LONG_WORD = re.compile(r"[^\W\d_]{5,}")
_PASSAGES = (
    "The market opens at eight on Saturdays. Most stalls sell fruit and bread.",
    "It had rained all night, and the road was still wet.",
    "Our train left ten minutes late. Nobody seemed to mind.",
    "She put the kettle on and opened the window.",
)
_BEFORE_NAMES = ("New", "Little", "North", "Saint")


def without_question_mark(prompt: str) -> str | None:
    """The prompt without the mark at its end; `None` where there is none."""
    bare = prompt.rstrip()
    return bare.rstrip("?").rstrip() if bare.endswith("?") else None


def as_question(text: str) -> str | None:
    """The text with a question mark at its end; `None` where it has one."""
    bare = text.rstrip()
    return None if bare.endswith("?") else bare.rstrip(" .:") + "?"


def in_lower_case(prompt: str) -> str | None:
    """The prompt in lower case; `None` where it is already."""
    return None if prompt == prompt.lower() else prompt.lower()


def with_typo(prompt: str, subject: str | None, choose: random.Random) -> str | None:
    """The prompt with two neighbouring letters of a longer word swapped, never in the subject; `None` if none is left.

    >>> with_typo("What is the capital of Francia?", "Francia", random.Random(0))
    'What is the capiatl of Francia?'
    """
    taken = [found.span() for found in re.finditer(re.escape(subject), prompt)] if subject else []
    places = [
        place
        for word in _LONG_WORD.finditer(prompt)
        if not any(start < word.end() and word.start() < end for start, end in taken)
        for place in range(word.start() + 1, word.end() - 2)
        if prompt[place] != prompt[place + 1]
    ]
    if not places:
        return None
    place = choose.choice(places)
    return prompt[:place] + prompt[place + 1] + prompt[place] + prompt[place + 2 :]


def in_passage(prompt: str, choose: random.Random) -> str:
    """The prompt after a sentence or two about something else."""
    return f"{choose.choice(_PASSAGES)} {prompt}"


def similar_name(subject: str, choose: random.Random) -> str:
    """A name with one word more, which means something else; with a word less it may mean the same ("Obama").

    >>> similar_name("Lake Erie", random.Random(0))
    'Saint Lake Erie'
    """
    return f"{choose.choice(_BEFORE_NAMES)} {subject}"
