"""What a query says of an edit's subject, and what both ask when the subject is left out."""

from __future__ import annotations

import re

from editors.texts.requests import EditRequest

_WINDOW = 3
_PRONOUN = "it"
# The end of a sentence: not behind an initial or a short form ("J.", "St.", "Inc."), but behind a longer word.
_SENTENCE_END = re.compile(r"\n+|(?<=[a-z0-9]{3}[a-z0-9)\"'][.!?])\s+(?=[^\W_a-z])")
_WORDS_ASKED = 3
_ARTICLES = {"A", "An", "The"}


def final_question(text: str) -> str:
    """What is asked at the end: the last sentence of a text, with sentences before it as long as it is of few words.

    >>> final_question("It had rained all night. The capital of France is")
    'The capital of France is'
    >>> final_question("Where did J. R. Smith die?")
    'Where did J. R. Smith die?'
    """
    sentences = [part for part in _SENTENCE_END.split(text.strip()) if part.strip()]
    for start in range(len(sentences) - 1, 0, -1):
        if len(" ".join(sentences[start:]).split()) >= _WORDS_ASKED:
            return " ".join(sentences[start:])
    return text


def without_subject(text: str, subject: str | None) -> str:
    """The text with a pronoun in place of the subject, as it is where it does not name it.

    >>> without_subject("What is the capital of FRANCE?", "France")
    'What is the capital of it?'
    """
    return re.sub(re.escape(subject), _PRONOUN, text, flags=re.IGNORECASE) if subject else text


def mentioned(text: str, request: EditRequest) -> float:
    """How much of the request's subject is named in a text: the share of its runs of three letters that the text has.

    From 0 to 1, and 1 where there is no subject. Case and punctuation do not count; a typing error costs little. 0
    where it is named only as a part of longer names than in the edit prompt, as far as capital letters tell.

    >>> edit = EditRequest("The capital of France is", "Lyon", subject="France")
    >>> mentioned("what is the capital of france", edit), mentioned("What is the capital of Chad?", edit)
    (1.0, 0.0)
    >>> mentioned("What is the capital of New France?", edit)
    0.0
    """
    if not request.subject:
        return 1.0
    known = {word for words in _around(request.prompt, request.subject) for word in words}
    around = _around(text, request.subject)
    if around and all(words - known for words in around):
        return 0.0
    wanted = _windows(request.subject)
    return len(wanted & _windows(text)) / len(wanted) if wanted else 1.0


def _around(text: str, subject: str) -> list[set[str]]:
    """For each place where the subject is named, the words right before and behind it that may belong to the name.

    Those with a capital letter do, but for the first word of a sentence, and articles.
    """
    found = []
    for place in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text):
        before = re.search(r"(?<=[\w,;)] )([^\W\d_a-z][\w'-]*) $", text[: place.start()])
        behind = re.match(r" ([^\W\d_a-z][\w'-]*)", text[place.end() :])
        found.append({match.group(1) for match in (before, behind) if match is not None} - _ARTICLES)
    return found


def _windows(text: str) -> set[str]:
    """All runs of three characters of a text, its words set apart by one space."""
    words = " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])
    return {words[start : start + _WINDOW] for start in range(len(words) - _WINDOW + 1)}
