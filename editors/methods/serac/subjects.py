"""What a query says of an edit's subject, and what both ask when the subject is left out."""

from __future__ import annotations

import re

_WINDOW = 3
_PRONOUN = "it"


def without_subject(text: str, subject: str | None) -> str:
    """The text with a pronoun in place of the subject, as it is where it does not name it.

    >>> without_subject("What is the capital of FRANCE?", "France")
    'What is the capital of it?'
    """
    return re.sub(re.escape(subject), _PRONOUN, text, flags=re.IGNORECASE) if subject else text


def mentioned(text: str, subject: str | None) -> float:
    """How much of the subject is named in the text: the share of its runs of three letters that the text has too.

    From 0 to 1, and 1 where there is no subject. Case and punctuation do not count; a typing error costs little.

    >>> mentioned("what is the capital of france", "France")
    1.0
    >>> mentioned("What is the capital of Chad?", "France")
    0.0
    """
    if not subject:
        return 1.0
    wanted = _windows(subject)
    return len(wanted & _windows(text)) / len(wanted) if wanted else 1.0


def _windows(text: str) -> set[str]:
    """All runs of three characters of a text, its words set apart by one space."""
    words = " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])
    return {words[start : start + _WINDOW] for start in range(len(words) - _WINDOW + 1)}
