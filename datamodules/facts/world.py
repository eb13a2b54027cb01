"""`world_facts`: edit records about real facts, made from installed packages only, without any download."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from datamodules.facts.catalogue import world_relations
from datamodules.facts.relation import Relation
from datamodules.records import EditRecord, Probe

_SOURCE = "built-in world facts"
_HELD_OUT_SHARE = 0.1
_NEIGHBOURS = 3
_SAME_SUBJECT = 2


def world_facts(seed: int) -> dict[str, list[EditRecord]]:
    """Make one edit record of every built-in fact, about 80/10/10 in three splits.

    The records of a split are in random order, so that any first part of it is a mix of all relations. All facts
    about one subject are in one split, and so are the locality probes of its records.

    Args:
        seed: decides the splits, the false answers, the phrasings and the probes. Equal seeds give equal records
            in every process.

    Returns:
        The records of "train", "val" and "test".
    """
    relations = world_relations()
    return {split: _records(relations, subjects, seed) for split, subjects in split_subjects(relations, seed).items()}


def split_subjects(relations: Sequence[Relation], seed: int) -> dict[str, set[str]]:
    """Divide the subjects of all relations into train, val and test.

    Subjects are drawn relation by relation, each filed under the rarest relation it has a fact of: even a small
    relation is thereby found in every split.

    Args:
        relations: relations whose subjects are to be divided.
        seed: decides the draw.

    Returns:
        The subjects of "train", "val" and "test".
    """
    splits: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for name, members in _by_rarest_relation(relations).items():
        random.Random(f"{seed}/split/{name}").shuffle(members)
        held_out = round(_HELD_OUT_SHARE * len(members))
        splits["val"].update(members[:held_out])
        splits["test"].update(members[held_out : 2 * held_out])
        splits["train"].update(members[2 * held_out :])
    return splits


def _by_rarest_relation(relations: Sequence[Relation]) -> dict[str, list[str]]:
    filed: set[str] = set()
    groups: dict[str, list[str]] = {}
    for relation in sorted(relations, key=lambda relation: (len(relation.facts), relation.name)):
        groups[relation.name] = sorted(relation.facts.keys() - filed)
        filed.update(relation.facts)
    return groups


def _records(relations: Sequence[Relation], subjects: set[str], seed: int) -> list[EditRecord]:
    relations_of: dict[str, list[Relation]] = defaultdict(list)
    for relation in relations:
        for subject in relation.facts.keys() & subjects:
            relations_of[subject].append(relation)
    records = [
        _record(relation, subject, subjects, relations_of[subject], seed)
        for relation in relations
        for subject in sorted(relation.facts.keys() & subjects)
    ]
    random.Random(f"{seed}/order").shuffle(records)
    return records


def _record(relation: Relation, subject: str, subjects: set[str], known: Sequence[Relation], seed: int) -> EditRecord:
    # A generator per record: a fact added to one relation leaves the records of all others as they are.
    generator = random.Random(f"{seed}/{relation.name}/{subject}")
    target_new = generator.choice(relation.false_answers(subject))
    prompts = relation.prompts(subject)
    prompt = prompts.pop(generator.randrange(len(prompts)))
    candidates = sorted((relation.facts.keys() & subjects) - relation.disturbed_by(subject, target_new))
    unmoved = [other for other in known if other is not relation and other.name not in relation.moves]
    asked = [(relation, name) for name in generator.sample(candidates, min(_NEIGHBOURS, len(candidates)))]
    asked += [(other, subject) for other in generator.sample(unmoved, min(_SAME_SUBJECT, len(unmoved)))]
    return EditRecord(
        prompt=prompt,
        target_new=target_new,
        subject=subject,
        ground_truth=relation.facts[subject],
        rephrases=tuple(prompts),
        locality=tuple(_probe(other, name, generator) for other, name in asked),
        portability=_portability(relation, subject, target_new),
        relation=relation.name,
        source=_SOURCE,
    )


def _probe(relation: Relation, subject: str, generator: random.Random) -> Probe:
    return Probe(generator.choice(relation.prompts(subject)), relation.facts[subject])


def _portability(relation: Relation, subject: str, target_new: str) -> Mapping[str, tuple[Probe, ...]]:
    probes = tuple(_one_hop(relation, subject, target_new))
    return {"one_hop": probes} if probes else {}


def _one_hop(relation: Relation, subject: str, target_new: str) -> Iterable[Probe]:
    for hop in relation.hops:
        answer = hop.answers.get(target_new)
        # A question the edit does not give a new answer to says nothing about the edit.
        if answer is not None and answer != hop.answers.get(relation.facts[subject]):
            yield Probe(hop.question.format(subject), answer)
