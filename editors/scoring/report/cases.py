"""`ReportCase`: one edit with the texts on which its data says how it must do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from editors.texts.requests import EditRequest

# Kinds of near texts that have a row of their own, whether the data gives them or they are made from it.
SAME_QUESTION = "same_relation_other_subject"
OTHER_RELATION = "other_relation"

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ReportCase:
    """One edit to report on. Texts are prompts with answers; where the answer is not known it is empty.

    Args:
        request: the edit.
        rephrases: other wordings of its prompt.
        locality: questions whose answers it must not change, as the data has them.
        near: such questions near the edit, by kind (`SAME_QUESTION`, `OTHER_RELATION`, or any other).
        portability: questions whose answers follow from the edit, by kind.
    """

    request: EditRequest
    rephrases: tuple[str, ...] = ()
    locality: Pairs = ()
    near: Mapping[str, Pairs] = field(default_factory=dict)
    portability: Mapping[str, Pairs] = field(default_factory=dict)


def cases_hash(cases: Sequence[ReportCase]) -> str:
    """SHA-256 over all texts, in hexadecimal."""
    plain = [{**asdict(case), "near": dict(case.near), "portability": dict(case.portability)} for case in cases]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
