"""Tests of `Sample`: a part of a source, or more of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datamodules.records import EditRecord
from datamodules.sources import Sample, ZsRE
from editors.common.errors import DataError
from tests.tiny_world import TinyWorld


class Ten:
    """Ten records."""

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        return [EditRecord(f"Who founded {number}?", str(number)) for number in range(10)]


def numbers(source: Any) -> list[int]:
    return [int(record.target_new) for record in source.read(Path(), skip_invalid=False)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [*range(10)]),
        ({"limit": 3}, [0, 3, 6]),
        ({"limit": 99}, [*range(10)]),
        ({"repeat": 2}, [*range(10)] * 2),
        ({"repeat": 2, "limit": 2}, [0, 5, 0, 5]),
    ],
)
def test_sample_of_a_source(settings: dict[str, int], expected: list[int]) -> None:
    assert numbers(Sample(Ten(), **settings)) == expected


def test_samples_may_be_nested() -> None:
    assert numbers(Sample(Sample(Ten(), limit=5), repeat=2, limit=2)) == [0, 4, 0, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample(Ten(), repeat=0), "repeat must be at least 1, got 0"),
        (lambda: Sample(Ten(), limit=0), "limit must be at least 1, got 0; null takes all"),
        (lambda: Sample(Ten(), repeat=-1), "repeat must be at least 1, got -1"),
    ],
)
def test_sizes_have_a_range(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_sample_of_a_file(tiny_world: TinyWorld) -> None:
    whole, sample = ZsRE("train.json"), Sample(ZsRE("train.json"), repeat=3, limit=2)
    records = whole.read(tiny_world.data, skip_invalid=False)
    chosen = [records[0], records[len(records) // 2]]
    assert sample.read(tiny_world.data, skip_invalid=False) == chosen * 3


def test_sample_from_the_command_line(tiny_world: TinyWorld, tmp_path: Path) -> None:
    source = "{class_path: datamodules.ZsRE, init_args: {file: train.json}}"
    sample = f"[{{class_path: datamodules.Sample, init_args: {{source: {source}, limit: 4, repeat: 2}}}}]"
    cli = tiny_world.run("fit", tmp_path / "runs", f"--data.train={sample}", "--trainer.fast_dev_run=true")
    assert len(cli.datamodule.records["train"]) == 8
