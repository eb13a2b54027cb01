"""What a query says of an edit's subject, and what both ask when the subject is left out."""

from __future__ import annotations

import re

from editors.texts.requests import EditRequest

_WINDOW = 3
_PRONOUN = "it"
# Where a sentence may end: not behind an initial or a short form ("J.", "St.", "Inc."), but behind a longer word.
_SENTENCE_END = re.compile(r"\n+|(?<=\w{3}[\w)\"'][.!?])\s+")
_WORDS_ASKED = 3
# Words with a capital letter that stand beside a name without belonging to it: in headlines, and titles of persons.
_NO_NAMES = frozenset(
    ("A", "An", "And", "At", "By", "For", "From", "In", "Is", "Of", "On", "Or", "The", "To", "Was", "With")
)
_NO_NAMES |= {"Dr", "King", "Lady", "Lord", "Mr", "Mrs", "Ms", "President", "Queen", "Sir"}


def final_question(text: str) -> str:
    """What is asked at the end: the last sentence of a text, with sentences before it as long as it is of few words.

    >>> final_question("It had rained all night. The capital of France is")
    'The capital of France is'
    >>> final_question("Where did J. R. Smith die?")
    'Where did J. R. Smith die?'
    """
    sentences = _sentences(text.strip())
    for start in range(len(sentences) - 1, 0, -1):
        if len(" ".join(sentences[start:]).split()) >= _WORDS_ASKED:
            return " ".join(sentences[start:])
    return text


def _sentences(text: str) -> list[str]:
    """The sentences of a text; behind the end of one comes no small letter, but for a new line."""
    starts = [end.end() for end in _SENTENCE_END.finditer(text) if "\n" in end.group() or not text[end.end()].islower()]
    parts = [text[start:end].strip() for start, end in zip([0, *starts], [*starts, len(text)], strict=True)]
    return [part for part in parts if part]


def without_subject(text: str, subject: str | None) -> str:
    """The text with a pronoun in place of the subject, as it is where it does not name it.

    >>> without_subject("What is the capital of FRANCE?", "France")
    'What is the capital of it?'
    """
    return _named(subject).sub(_PRONOUN, text) if subject else text


def _named(subject: str) -> re.Pattern[str]:
    """Where a text names a subject, as whole words where its script sets words apart."""
    before, behind = ("" if end.lower() == end.upper() else r"\b" for end in (subject[0], subject[-1]))
    return re.compile(f"{before}{re.escape(subject)}{behind}", re.IGNORECASE)


def mentioned(text: str, request: EditRequest) -> float:
    """How much of the request's subject is named in a text: the share of its runs of three letters that the text has.

    From 0 to 1, and 1 where there is no subject. Case and punctuation do not count; a typing error costs little. 0
    where it is named only as a part of longer names than in the edit prompt, as far as capital letters tell; in a
    headline they do not.

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
    if around or _named(request.subject).search(text):
        return 1.0
    wanted = _windows(request.subject)
    return len(wanted & _windows(text)) / len(wanted) if wanted else 1.0


def _around(text: str, subject: str) -> list[set[str]]:
    """For each place where the subject is named, the words right before and behind it that may belong to the name.

    Those with a capital letter do, but for the first word of a sentence and a few that are no names.
    """
    words = [word for word in text.split() if word[0].isalpha()]
    headline = 3 * sum(word[0].isupper() for word in words) > 2 * len(words) > 4
    found = []
    for place in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text):
        before = re.search(r"(?<=[\w,;)] )([^\W\d_][\w'-]*) $", text[: place.start()])
        behind = re.match(r" ([^\W\d_][\w'-]*)", text[place.end() :])
        beside = {match.group(1) for match in (before, behind) if match is not None and not headline}
        found.append({word for word in beside if word[0].isupper()} - _NO_NAMES)
    return found


def _windows(text: str) -> set[str]:
    """All runs of three characters of a text, its words set apart by one space."""
    words = " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])
    return {words[start : start + _WINDOW] for start in range(len(words) - _WINDOW + 1)}
