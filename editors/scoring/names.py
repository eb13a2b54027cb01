"""The names of metrics, in one place: `[SLICE/][before/]PROMISE/PROTOCOL/MEASURE`.

The protocol is part of every name, because teacher forcing flatters. Losses are no measures: they are named `loss/…`.
"""

from __future__ import annotations

# Promises. Those of a kind of text are `PROMISE_KIND`, as in "portability_Reasoning".
RELIABILITY = "reliability"
GENERALITY = "generality"
LOCALITY = "locality"
PORTABILITY = "portability"
PROMISES = (RELIABILITY, GENERALITY, LOCALITY, PORTABILITY)

# Protocols.
TEACHER_FORCED = "teacher_forced"
GENERATED = "generated"
PROTOCOLS = (TEACHER_FORCED, GENERATED)

# Measures: against the answer in the data, and against what the unedited model says.
TOKEN_ACCURACY = "token_accuracy"
EXACT_MATCH = "exact_match"
STARTS_WITH_ANSWER = "starts_with_answer"
PROBABILITY_SUCCESS = "probability_success"
TOKEN_AGREEMENT = "token_agreement"
EXACT_AGREEMENT = "exact_agreement"

BEFORE = "before"
_PARTS = 3


def metric_name(promise: str, protocol: str, measure: str) -> str:
    """The name of a measure after the edit.

    >>> metric_name(GENERALITY, TEACHER_FORCED, TOKEN_ACCURACY)
    'generality/teacher_forced/token_accuracy'
    """
    return f"{promise}/{protocol}/{measure}"


def promise_of_kind(promise: str, kind: str) -> str:
    """A promise that is kept, or not, on texts of one kind.

    >>> promise_of_kind(PORTABILITY, "Reasoning")
    'portability_Reasoning'
    """
    return f"{promise}_{kind}"


def before_edit(name: str) -> str:
    """The name of the same measure before the edit; a slice comes first in it.

    >>> before_edit("reliability/generated/exact_match")
    'before/reliability/generated/exact_match'
    >>> before_edit("unseen_template/reliability/generated/exact_match")
    'unseen_template/before/reliability/generated/exact_match'
    """
    parts = name.split("/")
    return "/".join([*parts[:-_PARTS], BEFORE, *parts[-_PARTS:]])


def is_after_edit(name: str) -> bool:
    """Whether this is a measure after the edit, of whatever slice: neither one before it nor a loss.

    >>> names = ["loss/edit", "before/locality/generated/exact_match", "locality/generated/exact_match"]
    >>> [name for name in names if is_after_edit(name)]
    ['locality/generated/exact_match']
    """
    parts = name.split("/")
    return len(parts) >= _PARTS and parts[-2] in PROTOCOLS and BEFORE not in parts


# The one number of each promise that is drawn, and that tables of editors show first.
TOKEN_LEVEL = {
    RELIABILITY: metric_name(RELIABILITY, TEACHER_FORCED, TOKEN_ACCURACY),
    GENERALITY: metric_name(GENERALITY, TEACHER_FORCED, TOKEN_ACCURACY),
    LOCALITY: metric_name(LOCALITY, TEACHER_FORCED, TOKEN_AGREEMENT),
}
