"""Measures of answers as text, each 0 or 1 (`kl` in nats)."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from editors.scoring.report.answers import EditedAnswer
from editors.scoring.report.probes import Probe
from editors.scoring.report.rows import Expects

EXACT_MATCH, STARTS_WITH = "exact_match", "starts_with"
SAYS_TARGET, NEWLY_SAYS_TARGET, SAYS_ANSWER = "says_target", "newly_says_target", "says_answer"
ANSWER_KEPT, TOKEN_AGREEMENT, KL = "answer_kept", "token_agreement", "kl"
EMPTY, LOOPING = "empty", "looping"

# The one measure of a row that says whether the edited model does as it should.
HEADLINE: Mapping[Expects, str] = {"target": EXACT_MATCH, "answer": EXACT_MATCH, "keep": ANSWER_KEPT}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)
_WORDS_IN_LOOP, _TIMES = 4, 4
_LOOP = re.compile(r"([^\W\d_]{2,20}?)\1{3,}")


@dataclass(frozen=True)
class Outcome:
    """One probe, before and after an edit.

    Args:
        case: the number of its case.
        probe: the text that was asked.
        before: what the base model said.
        after: what the edited model said.
        values: measures after the edit.
        values_before: those that say something of the base model too.
    """

    case: int
    probe: Probe
    before: str
    after: str
    values: Mapping[str, float]
    values_before: Mapping[str, float]

    @property
    def good(self) -> bool:
        """Whether the edited model has done as it should."""
        return self.values[HEADLINE[self.probe.expects]] == 1


def measured(case: int, probe: Probe, target: str, before: str, after: EditedAnswer) -> Outcome:
    """The measures of a probe.

    Args:
        case: the number of its case.
        probe: the text that was asked.
        target: what the edit is to make the model say.
        before: what the base model said.
        after: what the edited model said.
    """
    old, new = _of_answer(probe, target, before), _of_answer(probe, target, after.text)
    if probe.expects == "keep":
        new[NEWLY_SAYS_TARGET] = new[SAYS_TARGET] * (1 - old[SAYS_TARGET])
        new |= {ANSWER_KEPT: float(before == after.text), TOKEN_AGREEMENT: after.agreement, KL: after.kl}
    return Outcome(case, probe, before, after.text, new, old)


def _of_answer(probe: Probe, target: str, text: str) -> dict[str, float]:
    """What can be said of one answer alone."""
    values = {SAYS_TARGET: says(text, target), EMPTY: float(not text), LOOPING: float(is_loop(text))}
    if probe.expects == "keep":
        return values
    wanted = normalised(probe.answer) or probe.answer.strip()
    found = normalised(text) or text
    values[EXACT_MATCH] = float(found == wanted)
    values[STARTS_WITH] = float(found == wanted or found.startswith(f"{wanted} "))
    if probe.expects == "answer":
        values[SAYS_ANSWER] = says(text, probe.answer)
    return values


def normalised(text: str) -> str:
    """As SQuAD's evaluation reads answers: lower case, no punctuation, no articles, single spaces.

    >>> normalised("The  United States, of course!")
    'united states of course'
    """
    return " ".join(_ARTICLES.sub(" ", text.casefold().translate(_MARKS)).split())


def says(text: str, target: str) -> float:
    """Whether the target is in the text, in whole words.

    >>> says("It is New York City.", "new york"), says("Parisian", "Paris")
    (1.0, 0.0)
    """
    wanted = normalised(target)
    if not wanted:  # an article, or marks alone
        return float(target.strip().casefold() in text.casefold())
    return float(f" {wanted} " in f" {normalised(text)} ")


def is_loop(text: str) -> bool:
    """Whether some words, four at most, or some letters come four times in a row.

    >>> is_loop("no no no no"), is_loop("itureitureitureiture"), is_loop("no, no and no")
    (True, True, False)
    """
    words = text.casefold().split()
    for length in range(1, _WORDS_IN_LOOP + 1):
        run = 0
        for first, second in zip(words, words[length:], strict=False):
            run = run + 1 if first == second else 0
            if run == (_TIMES - 1) * length:
                return True
    return _LOOP.search(text.casefold()) is not None
