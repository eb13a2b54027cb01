"""Data that teaches the wrong thing is counted and said."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from datamodules.doubtful import contradictions, warn_of_doubtful_data, without_effect, without_locality
from datamodules.near import NearLocality
from datamodules.records import EditRecord, Probe

ONE = EditRecord("Who rules Dor?", "Ann", "Dor", "Tom", locality=(Probe("Who wrote Hamlet?", "Shakespeare"),))
OTHER = replace(ONE, prompt="who rules  dor", subject="dor", target_new="Eve")
SAME = replace(ONE, prompt="Who rules Fen?", subject="Fen", target_new="tom.")
BARE = replace(ONE, prompt="Who rules Gal?", subject="Gal", locality=())


def test_contradictions_are_counted() -> None:
    told = contradictions([ONE, OTHER, SAME, BARE])
    assert told.startswith("2 of 4 record(s) contradict one another, on 1 question(s): 'Who rules Dor?' → 'Ann' |")
    assert contradictions([ONE, SAME, BARE]) == ""


def test_edits_without_effect_are_counted() -> None:
    assert without_effect([ONE, SAME]).startswith(
        "1 of 2 record(s) ask for what is already so ('Who rules Fen?' → 'tom.')"
    )
    assert without_effect([ONE, replace(ONE, ground_truth="")]) == ""


def test_training_without_locality_texts_is_said() -> None:
    pool = [Probe("Who sang?", "Ann")]
    assert "1 of 2 record(s) are trained without a locality text" in without_locality([ONE, BARE], [], None, 1)
    assert "2 of 2 record(s)" in without_locality([ONE, BARE], pool, None, 0)
    assert without_locality([ONE], [], None, 1) == without_locality([ONE, BARE], pool, None, 1) == ""
    assert without_locality([BARE], [], NearLocality(), 1) == without_locality([], [], None, 1) == ""


def test_each_split_is_named_and_repeated_records_count_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_doubtful_data({"train": [ONE, OTHER] * 3, "val": [SAME], "test": []}, [], None, 1)
    assert [message.split(" record")[0] for message in caplog.messages] == ["train: 2 of 2", "val: 1 of 1"]
    caplog.clear()
    warn_of_doubtful_data({"train": [ONE], "val": [], "test": [ONE]}, [], None, 1)
    assert not caplog.messages
