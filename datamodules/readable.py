"""Texts that cannot be encoded: found before the first step, not when their batch is drawn hours later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from datamodules.records import EditRecord, Probe, report_faults

# Texts encoded in one call: enough to be fast, few enough for their offsets to fit into memory.
_CHUNK = 10_000
_REMEDY = "Shorten these texts, raise data.max_length where the base model reads more"

_Pair = tuple[str, str]
# For each pair of prompt and answer what is wrong with it; empty where nothing is.
FaultsOf = Callable[[Sequence[_Pair]], list[str]]


def readable_data(
    splits: Mapping[str, Sequence[EditRecord]], pool: Sequence[Probe], faults_of: FaultsOf, *, skip_invalid: bool
) -> tuple[dict[str, list[EditRecord]], list[Probe]]:
    """The records and pool questions all of whose texts can be encoded; reports the others at once.

    Args:
        splits: records by split name; of the training split the texts of training are checked, of the others those of
            evaluation.
        pool: the locality pool.
        faults_of: says what is wrong with texts.
        skip_invalid: log and leave the others out instead of refusing them.

    Raises:
        DataError: a text cannot be encoded and `skip_invalid` is false.
    """
    # A record may be in a split more than once, to give it weight; it is one row all the same.
    rows = {id(r): (r.source or split, _pairs(r, split)) for split, records in splits.items() for r in records}
    rows |= {id(probe): (probe.source or "locality pool", [(probe.prompt, probe.answer)]) for probe in pool}
    found = _faults({pair for _, pairs in rows.values() for pair in pairs}, faults_of)
    broken = {
        key: f"{place}: {next(found[pair] for pair in pairs if pair in found)}"
        for key, (place, pairs) in rows.items()
        if not found.keys().isdisjoint(pairs)
    }
    if broken:
        report_faults(list(broken.values()), len(rows), "data", skip_invalid=skip_invalid, remedy=_REMEDY)
    kept = {split: [r for r in records if id(r) not in broken] for split, records in splits.items()}
    return kept, [probe for probe in pool if id(probe) not in broken]


def _pairs(record: EditRecord, split: str) -> list[_Pair]:
    """What is read of a record, as prompts with answers."""
    pairs = [(prompt, record.target_new) for prompt in (record.prompt, *record.rephrases)]
    probes = list(record.locality)
    if split != "train":
        probes += [probe for kind in record.portability.values() for probe in kind]
        pairs += [(record.prompt, record.ground_truth)] if record.ground_truth else []
    return pairs + [(probe.prompt, probe.answer) for probe in probes]


def _faults(pairs: set[_Pair], faults_of: FaultsOf) -> dict[_Pair, str]:
    """What is wrong with those pairs that have something wrong."""
    listed = list(pairs)
    chunks = [listed[i : i + _CHUNK] for i in range(0, len(listed), _CHUNK)]
    return {p: fault for chunk in chunks for p, fault in zip(chunk, faults_of(chunk), strict=True) if fault}
