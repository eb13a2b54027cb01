"""Record sources: the data sets by name, each one file (or the built-in facts), to be listed in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.base import RecordSource
from datamodules.counterfact import read_counterfact, read_split
from datamodules.facts import world_facts
from datamodules.knowedit import read_knowedit
from datamodules.mquake import read_mquake_qa
from datamodules.records import EditRecord
from datamodules.zsre import read_zsre
from editors.common.errors import DataError


def _check_sampling(repeat: int, limit: int | None) -> None:
    if repeat < 1:
        raise DataError(f"repeat must be at least 1, got {repeat}; leave the source out to have none of its records")
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}; null takes all records")


def _limited(records: list[EditRecord], limit: int | None) -> list[EditRecord]:
    """That many records, spread evenly; all of them where there are fewer."""
    if limit is None or limit >= len(records):
        return records
    return [records[i * len(records) // limit] for i in range(limit)]


@dataclass
class Sample:
    """A part of another source, or more of it: gives data sets that are mixed the weight they should have.

    Args:
        source: any source.
        repeat: how often each record comes in an epoch.
        limit: take only this many records, spread evenly over the source; `None` for all.
    """

    source: RecordSource
    repeat: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        _check_sampling(self.repeat, self.limit)

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The chosen records, all of them once before any comes again."""
        return _limited(self.source.read(folder, skip_invalid=skip_invalid), self.limit) * self.repeat


@dataclass
class ZsRE:
    """A zsRE file in the format of MEND and EasyEdit.

    Args:
        file: file name, relative to the data module's `path`.
        repeat: how often each record comes in an epoch, to give a small file weight beside a larger one.
    """

    file: str
    repeat: int = 1

    def __post_init__(self) -> None:
        _check_sampling(self.repeat, None)

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        return read_zsre(folder / self.file, skip_invalid=skip_invalid) * self.repeat


@dataclass
class MQuAKE:
    """A file of MQuAKE's question-answering edits (PokeMQA format): paraphrases, but no locality of its own.

    Args:
        file: file name, relative to the data module's `path`.
    """

    file: str

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        return read_mquake_qa(folder / self.file, skip_invalid=skip_invalid)


@dataclass
class CounterFact:
    """A CounterFact file, in EasyEdit's flat format or ROME's nested one.

    Args:
        file: file name, relative to the data module's `path`.
        split_file: file with lists of case ids, relative to `path`.
        split: which of those lists to take; all rows where there is no `split_file`.
        limit: take only this many records, spread evenly over the file; `None` for all.
    """

    file: str
    split_file: str | None = None
    split: str = "train"
    limit: int | None = None

    def __post_init__(self) -> None:
        _check_sampling(1, self.limit)

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        case_ids = read_split(folder / self.split_file, self.split) if self.split_file else None
        records = read_counterfact(folder / self.file, case_ids=case_ids, skip_invalid=skip_invalid)
        return _limited(records, self.limit)


@dataclass
class KnowEdit:
    """A KnowEdit file.

    Args:
        file: file name, relative to the data module's `path`.
    """

    file: str

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        return read_knowedit(folder / self.file, skip_invalid=skip_invalid)


@dataclass
class WorldFacts:
    """Real facts that are built in: no file, no download.

    Args:
        split: which split.
        seed: seed of the split and of the new targets.
    """

    split: Literal["train", "val", "test"]
    seed: int = 0

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:  # noqa: ARG002 - needs no file
        """The split's records."""
        return world_facts(self.seed)[self.split]
