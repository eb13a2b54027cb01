"""Tests of `datamodules.near`: locality texts near an edit."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from datamodules.near import NearLocality, NearTexts
from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

KINDS = ("other_subject", "other_relation", "other_prompt", "similar_name")


def record(question: str, subject: str, **fields: Any) -> EditRecord:
    settings = {"target_new": f"new {subject}", "ground_truth": f"old {subject}"}
    return EditRecord(question.format(subject), subject=subject, **{**settings, **fields})


CAPITAL, RULER = "What is the capital of {}?", "Who rules {}?"
RECORDS = [
    record(CAPITAL, "France", rephrases=("Name France's capital.", "Which city is it?")),
    record(CAPITAL, "Chad", rephrases=("Name Chad's capital.",)),
    record(CAPITAL, "New France"),
    record(RULER, "Dor"),
]


def texts(kind: str, index: int = 0, records: list[EditRecord] = RECORDS, **settings: float) -> Counter[Any]:
    """How often each text comes in 400 draws. A draw that hits on unfit records again and again gives none."""
    near = NearTexts(records, NearLocality(**settings))
    drawn = [near.text(kind, records[index], "TARGET", random.Random(seed)) for seed in range(400)]
    return Counter(pair for pair in drawn if pair is not None)


def test_the_question_is_asked_about_another_subject() -> None:
    found = {pair[0] for pair in texts("other_subject")}
    asked = {"What is the capital of Chad?", "Name Chad's capital.", "What is the capital of Dor?"}
    assert asked <= found <= {*asked, "Name Dor's capital."}


def test_another_question_is_asked_about_the_subject() -> None:
    assert {pair[0] for pair in texts("other_relation")} == {"Who rules France?"}


def test_other_prompts_are_about_something_else() -> None:
    found = {pair[0] for pair in texts("other_prompt")}
    assert found == {"What is the capital of Chad?", "Name Chad's capital.", "Who rules Dor?"}


def test_a_similar_name_has_a_word_more() -> None:
    found = {pair[0] for pair in texts("similar_name")}
    names = {"Chad France", "France Chad", "Dor France", "France Dor"}
    prompts = {template.format(name) for name in names for template in (CAPITAL, "Name {}'s capital.")}
    assert found == prompts


@pytest.mark.parametrize("kind", KINDS)
def test_no_near_text_asks_what_is_edited(kind: str) -> None:
    """Nor does a paraphrase without its subject, or a subject that may be the same."""
    for pair in texts(kind):
        assert pair[0] not in (RECORDS[0].prompt, *RECORDS[0].rephrases)
        assert "New France" not in pair[0]


def test_the_answer_is_the_truth_or_the_target() -> None:
    assert {pair[1] for pair in texts("other_prompt", target_as_answer=0.0)} == {"old Chad", "old Dor"}
    assert {pair[1] for pair in texts("other_prompt", target_as_answer=1.0)} == {"TARGET"}
    shares = Counter(answer for pair, n in texts("other_prompt").items() for answer in [pair[1]] * n)
    assert 140 < shares["TARGET"] < 260


def test_an_unknown_answer_is_the_target() -> None:
    unknown = [record(RULER, name, ground_truth="") for name in ("Dor", "Chad")]
    assert {pair[1] for pair in texts("other_prompt", records=unknown, target_as_answer=0.0)} == {"TARGET"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_alone_has_no_near_text(kind: str) -> None:
    assert not texts(kind, records=RECORDS[:1])


@pytest.mark.parametrize("kind", KINDS[:2])
def test_without_a_subject_there_is_no_such_text(kind: str) -> None:
    assert not texts(kind, records=[EditRecord("Who?", "Ann"), *RECORDS])


def test_kinds_come_by_their_weight() -> None:
    near = NearTexts(RECORDS, NearLocality(far=1, other_subject=3, other_relation=0, other_prompt=0, similar_name=0))
    kinds = Counter(near.kind(random.Random(seed)) for seed in range(400))
    assert set(kinds) == {"far", "other_subject"}
    assert 260 < kinds["other_subject"] < 340


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"far": -1.0}, r"near_locality.far must be at least 0, got -1.0"),
        (dict.fromkeys(("far", *KINDS), 0.0), r"at least one weight must be above 0"),
        ({"target_as_answer": 1.5}, r"target_as_answer is a share between 0 and 1, got 1.5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        NearLocality(**settings)


def test_an_evaluated_record_has_one_probe_of_each_kind() -> None:
    own = Probe("Where is Oz?", "nowhere")
    near = NearTexts(RECORDS, NearLocality(other_prompt=0.0, similar_name=0.0))
    plain = replace(RECORDS[0], locality=(own,))
    probed = near.probed(plain, lambda _: True)
    assert [probe.kind for probe in probed.locality] == ["", "other_subject", "other_relation"]
    assert probed.locality[0] == own
    assert probed == near.probed(plain, lambda _: True)  # the same at every evaluation
    assert near.probed(plain, lambda pair: "capital" not in pair[0]).locality == (own, probed.locality[2])


def test_another_wording_of_the_same_relation_is_no_other_question() -> None:
    reworded = replace(RECORDS[3], relation="capital")
    assert not texts("other_relation", records=[replace(RECORDS[0], relation="Capital"), reworded])
    same = replace(RECORDS[0], rephrases=(RULER.format("France"),))
    assert not texts("other_relation", records=[same, RECORDS[3]])
