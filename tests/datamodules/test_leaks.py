"""Leaks between splits: found, refused, and allowed on purpose; the real splits have none."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from datamodules.counterfact import read_counterfact, read_split
from datamodules.leaks import Leak, find_leaks, find_pool_leaks, handle_leaks, handle_pool_leaks
from datamodules.locality_pool import read_locality_pool
from datamodules.mquake import read_mquake_qa
from datamodules.records import EditRecord, Probe
from datamodules.zsre import read_zsre
from editors.common.errors import DataError


def _record(prompt: str, subject: str = "", locality: str = "", source: str = "") -> EditRecord:
    probes = (Probe(locality, "x"),) if locality else ()
    return EditRecord(prompt=prompt, target_new="x", subject=subject, locality=probes, source=source)


def test_subjects_are_compared_without_case() -> None:
    train = [_record("Capital of FRANCE?", "FRANCE", source="a row 0")]
    test = [_record("Who rules Spain?", "Spain"), _record("Who rules France?", "France", source="b row 1")]
    assert find_leaks({"train": train, "test": test}) == [
        Leak("subject", "FRANCE", ("train", "test"), ("a row 0", "b row 1"))
    ]


def test_records_without_subject_share_none() -> None:
    assert find_leaks({"train": [_record("One?")], "test": [_record("Two?")]}) == []


def test_prompts_leak_per_kind_and_pair() -> None:
    splits = {
        "train": [_record("Same  edit?", locality="who is it")],
        "val": [_record("same edit?", locality="Who is it")],
        "test": [_record("Other?", locality="who is it")],
    }
    found = Counter((leak.splits, leak.kind) for leak in find_leaks(splits))
    assert found == {
        (("train", "val"), "edit prompt"): 1,
        (("train", "val"), "locality prompt"): 1,
        (("train", "test"), "locality prompt"): 1,
        (("val", "test"), "locality prompt"): 1,
    }


def test_repeats_within_a_split_are_no_leak() -> None:
    assert find_leaks({"train": [_record("Same?"), _record("Same?")], "test": []}) == []


def test_refusal_counts_and_shows_ten_examples() -> None:
    train = [_record(f"Who rules S{number}?", f"S{number}", source=f"a row {number}") for number in range(12)]
    test = [_record(f"Where is S{number}?", f"S{number}", source=f"b row {number}") for number in range(12)]
    with pytest.raises(DataError) as caught:
        handle_leaks({"train": train, "test": test}, "refuse")
    message = str(caught.value)
    assert "train and test share 12 subject(s):\n    'S0' (a row 0 and b row 0)\n" in message
    assert "'S9'" in message
    assert "'S10'" not in message
    assert "... and 2 more" in message
    assert "on_leak: drop" in message


def test_allowed_leaks_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": [_record("Same?")], "test": [_record("Same?")]}
    with caplog.at_level(logging.WARNING):
        handle_leaks(splits, "warn")
    assert "train and test share 1 edit prompt(s):\n    'Same?'" in caplog.text


def test_clean_splits_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    handle_leaks({"train": [_record("One?")], "test": [_record("Two?")]}, "refuse")
    assert caplog.text == ""


# --- locality pool ---------------------------------------------------------------------------------------------------

JUDGED = EditRecord(
    "Who founded  Dor?", "x", rephrases=("By whom was Dor founded?",), locality=(Probe("nq question: who is it", "x"),)
)
POOL = [
    Probe(f"nq question: {text}", "x") for text in ("who founded dor", "by whom was dor founded ?", "Who is it", "new")
]


def test_pool_questions_that_held_out_edits_are_judged_by_leak() -> None:
    splits = {"val": [JUDGED], "test": [_record("Other?", locality="who is it?")]}
    assert [(leak.splits[1], leak.kind, leak.text) for leak in find_pool_leaks(POOL, splits)] == [
        ("val", "edit prompt", POOL[0].prompt),
        ("val", "paraphrase", POOL[1].prompt),
        ("val", "locality prompt", POOL[2].prompt),
        ("test", "locality prompt", POOL[2].prompt),
    ]


def test_pool_may_hold_questions_of_the_training_split() -> None:
    assert handle_pool_leaks(POOL, {"train": [JUDGED], "test": [_record("Other?")]}, "refuse") == POOL


def test_leaky_pool_is_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)locality pool and test share 1 paraphrase.*by whom.*on_leak: drop"):
        handle_pool_leaks(POOL, {"test": [JUDGED]}, "refuse")


def test_leaky_pool_questions_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    assert handle_pool_leaks(POOL, {"val": [JUDGED]}, "drop") == POOL[3:]
    assert "{'locality pool': 3}" in caplog.text


def test_leaky_pool_questions_stay_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert handle_pool_leaks(POOL, {"val": [JUDGED]}, "warn") == POOL
    assert "results overstate" in caplog.text


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_splits_do_not_leak(shared_data: Path) -> None:
    zsre = {split: read_zsre(shared_data / f"zsre_{split}.json") for split in ("train", "val", "test")}
    handle_leaks(zsre, "refuse")
    handle_pool_leaks(read_locality_pool(shared_data / "nq_locality_pool.json"), zsre, "refuse")
    handle_leaks({"more": read_mquake_qa(shared_data / "mquake_qa_edits_train.json"), "test": zsre["test"]}, "refuse")
    split_file = shared_data / "counterfact_split.json"
    files = {"train": "train", "val": "val", "test": "edit"}
    counterfact = {
        split: read_counterfact(shared_data / f"counterfact-{name}.json", case_ids=read_split(split_file, split))
        for split, name in files.items()
    }
    handle_leaks(counterfact, "refuse")


def test_published_counterfact_files_leak(shared_data: Path) -> None:
    splits = {name: read_counterfact(shared_data / f"counterfact-{name}.json") for name in ("train", "edit")}
    found = Counter(leak.kind for leak in find_leaks(splits))
    assert found == {"subject": 529, "edit prompt": 108, "locality prompt": 1769}
