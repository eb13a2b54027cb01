"""The rows of a report card: what is asked, and what the edited model should say to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from editors.scoring.report.cases import OTHER_RELATION, SAME_QUESTION

Expects = Literal["target", "keep", "answer"]

EDIT, PARAPHRASE = "edit", "paraphrase"
NO_QUESTION_MARK, LOWER_CASE, TYPO, PASSAGE = "no_question_mark", "lower_case", "typo", "passage"
CHAT_EDIT, CHAT_PARAPHRASE = "chat_edit", "chat_paraphrase"
LOCALITY, LOCALITY_QUESTION, UNRELATED_QUESTION = "locality", "locality_question", "unrelated_question"
NEAR_SUBJECT, UNRELATED, CHAT_UNRELATED, CHAT_NEAR = "near_subject", "unrelated", "chat_unrelated", "chat_near"
_NEAR, _PORTABILITY = "near/", "portability/"


@dataclass(frozen=True)
class RowKind:
    """What a row asks.

    Args:
        title: in words.
        expects: the target, an answer of the data, or what the model said before the edit.
    """

    title: str
    expects: Expects


_KINDS: dict[str, RowKind] = {
    EDIT: RowKind("the edit's prompt", "target"),
    PARAPHRASE: RowKind("paraphrases", "target"),
    NO_QUESTION_MARK: RowKind("without its question mark", "target"),
    LOWER_CASE: RowKind("in lower case", "target"),
    TYPO: RowKind("with a typing error", "target"),
    PASSAGE: RowKind("at the end of a passage", "target"),
    CHAT_EDIT: RowKind("the edit's prompt in the chat template", "target"),
    CHAT_PARAPHRASE: RowKind("paraphrases in the chat template", "target"),
    SAME_QUESTION: RowKind("the same question about another subject", "keep"),
    OTHER_RELATION: RowKind("another question about the subject", "keep"),
    NEAR_SUBJECT: RowKind("the same question about a similar name", "keep"),
    UNRELATED_QUESTION: RowKind("unrelated questions written like the edit", "keep"),
    LOCALITY: RowKind("the data's own locality texts", "keep"),
    LOCALITY_QUESTION: RowKind("the same with a question mark", "keep"),
    UNRELATED: RowKind("unrelated prompts", "keep"),
    CHAT_UNRELATED: RowKind("everyday questions in the chat template", "keep"),
    CHAT_NEAR: RowKind("the same question about another subject in the chat template", "keep"),
}


def near_row(kind: str) -> str:
    """The row of a kind of near texts.

    >>> near_row(SAME_QUESTION), near_row("aliases")
    ('same_relation_other_subject', 'near/aliases')
    """
    return kind if kind in (SAME_QUESTION, OTHER_RELATION) else _NEAR + kind


def portability_row(kind: str) -> str:
    """The row of a kind of portability texts."""
    return _PORTABILITY + kind


def kind_of(row: str) -> RowKind:
    """What a row asks.

    >>> kind_of("portability/Reasoning").title
    'follows from the edit: Reasoning'
    """
    if row.startswith(_PORTABILITY):
        return RowKind(f"follows from the edit: {row.removeprefix(_PORTABILITY)}", "answer")
    if row.startswith(_NEAR):
        return RowKind(f"near the edit: {row.removeprefix(_NEAR)}", "keep")
    return _KINDS[row]


def in_order(rows: set[str]) -> list[str]:
    """The rows as a card shows them: what must hold, what must stay (the nearest first), what follows."""
    fixed = [row for row in _KINDS if row in rows]
    return [*fixed, *sorted(row for row in rows if row not in _KINDS)]
