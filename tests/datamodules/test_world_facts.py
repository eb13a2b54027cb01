"""The built-in facts: that they are true, varied, and split without leaks, the same in every process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.facts import Hop, Relation, split_subjects, world_facts, world_relations
from datamodules.leaks import find_leaks
from datamodules.records import EditRecord, Probe
from editors.common.errors import DataError

Splits = dict[str, list[EditRecord]]

_ROOT = Path(__file__).parents[2]
_TEMPLATES = ("What is the capital of {}?", "Which city is the capital of {}?", "The capital of {} is", "{}: capital")
_KNOWN = [
    ("country_capital", "France", "Paris"),
    ("country_capital", "the Netherlands", "Amsterdam"),
    ("country_capital", "the United States", "Washington, D.C."),
    ("country_capital", "Kazakhstan", "Astana"),
    ("country_continent", "Kenya", "Africa"),
    ("country_currency", "Japan", "Japanese yen"),
    ("country_currency", "Switzerland", "Swiss franc"),
    ("country_language", "Brazil", "Portuguese"),
    ("country_domain", "the United Kingdom", ".uk"),
    ("country_calling_code", "Germany", "+49"),
    ("country_iso3", "Spain", "ESP"),
    ("city_country", "Cairo", "Egypt"),
    ("city_country", "Chicago", "the United States"),
    ("city_continent", "Sydney", "Oceania"),
    ("city_time_zone", "Berlin", "Central European Time"),
    ("city_time_zone", "Mumbai", "India Standard Time"),
    ("city_us_state", "Houston", "Texas"),
    ("state_capital", "California", "Sacramento"),
    ("state_abbreviation", "Georgia", "GA"),
    ("state_largest_city", "Illinois", "Chicago"),
    ("element_symbol", "gold", "Au"),
    ("element_number", "iron", "26"),
    ("element_period", "sodium", "3"),
    ("language_code", "French", "fr"),
    ("language_script", "Russian", "Cyrillic"),
    ("language_own_name", "German", "Deutsch"),
    ("currency_code", "British pound", "GBP"),
]
# What follows from an edit: relation, false answer, question about any subject, answer.
_FOLLOWS = [
    ("country_capital", "Cairo", "On which continent does the capital of {} lie?", "Africa"),
    ("country_capital", "Tokyo", "Which time zone does the capital of {} follow?", "Japan Standard Time"),
    ("country_currency", "Swiss franc", "What is the ISO 4217 code of the currency of {}?", "CHF"),
    ("country_language", "Greek", "What is the ISO 639-1 code of the official language of {}?", "el"),
    ("country_language", "Russian", "In which script is the official language of {} mainly written?", "Cyrillic"),
    ("city_country", "France", "What is the capital of the country in which {} lies?", "Paris"),
    ("city_country", "Japan", "What is the currency of the country in which {} lies?", "Japanese yen"),
    ("city_us_state", "Texas", "What is the capital of the US state in which {} lies?", "Austin"),
    ("element_number", "79", "Which period of the periodic table is {} in?", "6"),
]


@pytest.fixture(scope="module", params=[0, 7])
def splits(request: pytest.FixtureRequest) -> Splits:
    return world_facts(request.param)


@pytest.fixture(scope="module")
def relations() -> dict[str, Relation]:
    return {relation.name: relation for relation in world_relations()}


def _all(splits: Splits) -> Iterator[EditRecord]:
    return (record for records in splits.values() for record in records)


def test_there_are_many_facts_of_many_kinds(splits: Splits) -> None:
    counts = Counter(record.relation for record in _all(splits))
    assert counts.total() >= 1500
    assert len(counts) >= 12
    assert min(counts.values()) >= 40


def test_every_fact_becomes_one_record(splits: Splits, relations: dict[str, Relation]) -> None:
    made = Counter((record.relation, record.subject) for record in _all(splits))
    assert made == Counter((name, subject) for name, relation in relations.items() for subject in relation.facts)


def test_every_relation_has_questions_and_cloze_prompts(relations: dict[str, Relation]) -> None:
    for relation in relations.values():
        questions = [template for template in relation.templates if template.endswith("?")]
        assert len(set(relation.templates)) == len(relation.templates) >= 4
        assert 2 <= len(questions) <= len(relation.templates) - 2


def test_a_subject_names_one_entity(relations: dict[str, Relation]) -> None:
    kinds: dict[str, set[str]] = {}
    for name, relation in relations.items():
        for subject in relation.facts:
            kinds.setdefault(subject.casefold(), set()).add(name.partition("_")[0])
    assert [subject for subject, found in kinds.items() if len(found) > 1] == []


@pytest.mark.parametrize(("relation", "subject", "answer"), _KNOWN)
def test_known_facts_are_right(relations: dict[str, Relation], relation: str, subject: str, answer: str) -> None:
    assert relations[relation].facts[subject] == answer


def test_every_relation_has_a_known_fact(relations: dict[str, Relation]) -> None:
    assert {relation for relation, _, _ in _KNOWN} == set(relations)


def test_disputed_facts_are_left_out(relations: dict[str, Relation]) -> None:
    assert not {"Bolivia", "Israel", "South Africa", "Singapore"} & relations["country_capital"].facts.keys()
    assert not {"Turkey", "Russia", "Cyprus"} & relations["country_continent"].facts.keys()
    assert not {"Istanbul", "Moscow", "Honolulu"} & relations["city_continent"].facts.keys()
    assert not {"Switzerland", "India", "Norway"} & relations["country_language"].facts.keys()
    assert not {"Valencia", "Hyderabad", "Columbus", "Jerusalem"} & relations["city_country"].facts.keys()


@pytest.mark.parametrize(("relation", "target", "question", "answer"), _FOLLOWS)
def test_what_follows_from_an_edit_is_right(
    relations: dict[str, Relation], relation: str, target: str, question: str, answer: str
) -> None:
    hops = {hop.question: hop.answers for hop in relations[relation].hops}
    assert hops[question][target] == answer


def test_a_question_about_a_namesake_does_not_follow(relations: dict[str, Relation]) -> None:
    (hop,) = relations["state_largest_city"].hops
    assert hop.answers["Chicago"] == "Central Standard Time"
    assert not {"Portland", "Manchester"} & hop.answers.keys()


def test_portability_asks_about_the_subject_and_changes_the_answer(
    splits: Splits, relations: dict[str, Relation]
) -> None:
    probes = 0
    for record in _all(splits):
        hops = {hop.question.format(record.subject): hop.answers for hop in relations[record.relation].hops}
        for probe in record.portability.get("one_hop", ()):
            answers = hops[probe.prompt]
            assert probe.answer == answers[record.target_new] != answers.get(record.ground_truth)
            probes += 1
    assert probes > 1000


def test_the_false_answer_is_false_and_of_the_same_relation(splits: Splits, relations: dict[str, Relation]) -> None:
    for record in _all(splits):
        relation = relations[record.relation]
        assert record.ground_truth == relation.facts[record.subject]
        assert record.target_new in set(relation.facts.values()) - {record.ground_truth}
        assert record.target_new not in relation.also_true.get(record.subject, frozenset())


def test_a_language_spoken_in_a_country_is_no_false_answer(relations: dict[str, Relation]) -> None:
    false = relations["country_language"].false_answers("Spain")
    assert "Turkish" in false
    assert not {"Spanish", "Catalan", "Basque"} & set(false)


def test_prompts_and_rephrases_are_all_the_phrasings(splits: Splits, relations: dict[str, Relation]) -> None:
    for record in _all(splits):
        assert record.template in relations[record.relation].templates
        phrasings = sorted((record.prompt, *record.rephrases))
        assert phrasings == sorted(relations[record.relation].prompts(record.subject))


def test_locality_probes_are_true_and_not_moved_by_the_edit(splits: Splits, relations: dict[str, Relation]) -> None:
    asked = {
        Probe(prompt, answer): (name, subject)
        for name, relation in relations.items()
        for subject, answer in relation.facts.items()
        for prompt in relation.prompts(subject)
    }
    for record in _all(splits):
        relation = relations[record.relation]
        facts = [asked[probe] for probe in record.locality]
        neighbours = [subject for name, subject in facts if subject != record.subject]
        others = [name for name, subject in facts if subject == record.subject]
        assert len(neighbours) >= 2
        assert not set(neighbours) & {record.ground_truth, record.target_new}
        assert not set(others) & (relation.moves | {record.relation})
        unmoved = [n for n, r in relations.items() if record.subject in r.facts and n not in relation.moves]
        assert bool(others) == (unmoved != [record.relation])


def test_a_neighbour_does_not_lose_its_answer_to_the_edit(relations: dict[str, Relation]) -> None:
    assert relations["country_capital"].disturbed_by("France", "Cairo") == {"France", "Paris", "Cairo", "Egypt"}
    assert "Kenya" not in relations["country_continent"].disturbed_by("France", "Africa")


def test_splits_do_not_leak(splits: Splits) -> None:
    assert find_leaks(splits) == []
    texts = {
        split: {text for r in records for text in (r.prompt, *r.rephrases, *(probe.prompt for probe in r.locality))}
        for split, records in splits.items()
    }
    assert sum(len(found) for found in texts.values()) == len(set().union(*texts.values()))


def test_splits_hold_every_relation_in_the_wanted_shares(splits: Splits, relations: dict[str, Relation]) -> None:
    total = sum(len(records) for records in splits.values())
    assert len(splits["train"]) / total == pytest.approx(0.8, abs=0.02)
    assert len(splits["val"]) / total == pytest.approx(0.1, abs=0.02)
    for records in splits.values():
        assert {record.relation for record in records} == set(relations)
        assert len({record.relation for record in records[:100]}) >= 12


def test_texts_are_clean(splits: Splits) -> None:
    for record in _all(splits):
        probes = [*record.locality, *record.portability.get("one_hop", ())]
        texts = [record.prompt, record.target_new, record.ground_truth, record.subject, *record.rephrases]
        texts += [text for probe in probes for text in (probe.prompt, probe.answer)]
        assert all(text == " ".join(text.split()) != "" and "{" not in text for text in texts)
        assert record.subject.isascii()
        assert len(record.target_new) <= 40


def test_another_process_makes_the_same_records() -> None:
    code = "import hashlib, datamodules.facts as f; print(hashlib.sha256(repr(f.world_facts(7)).encode()).hexdigest())"
    environment = os.environ | {"PYTHONHASHSEED": "4321", "PYTHONPATH": str(_ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == hashlib.sha256(repr(world_facts(7)).encode()).hexdigest()


def test_subjects_of_a_small_relation_are_in_every_split() -> None:
    large = Relation("large", _TEMPLATES, {f"country {n}": f"city {n}" for n in range(300)})
    small = Relation("small", _TEMPLATES, {f"country {n}": f"town {n}" for n in range(30)})
    splits = split_subjects([large, small], seed=0)
    counts = {name: len(subjects & small.facts.keys()) for name, subjects in splits.items()}
    assert counts == {"train": 24, "val": 3, "test": 3}
    assert set().union(*splits.values()) == set(large.facts)


@pytest.mark.parametrize(
    ("templates", "facts", "hops", "message"),
    [
        (_TEMPLATES[:3], {"France": "Paris"}, (), "3 templates"),
        (_TEMPLATES[:1] * 4, {"France": "Paris"}, (), "4 questions among 4"),
        ((*_TEMPLATES, "The capital is"), {"France": "Paris"}, (), "exactly once"),
        (_TEMPLATES, {"France": "Paris"}, (Hop("Where?", {}),), "exactly once"),
        (_TEMPLATES, {"Singapore": "Singapore"}, (), "two different"),
        (_TEMPLATES, {"France": " "}, (), "non-empty"),
        (_TEMPLATES, {"city": "Paris"}, (), "reword the template"),
    ],
)
def test_a_broken_relation_is_refused(
    templates: tuple[str, ...], facts: dict[str, str], hops: tuple[Hop, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Relation("capital", templates, facts, hops=hops)
