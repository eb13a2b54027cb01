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
from datamodules.qaedit import read_qaedit
from datamodules.records import EditRecord
from datamodules.wikibigedit import read_wikibigedit
from datamodules.zsre import read_zsre
from editors.common.errors import DataError


@dataclass
class Sample:
    """A part of another source, or more of it: gives data sets that are mixed the weight they should have.

    Args:
        source: any source.
        repeat: how often each record comes in an epoch.
        limit: take only this many records, spread evenly over the source; `None`, or more than there are, for all.
    """

    source: RecordSource
    repeat: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise DataError(
                f"repeat must be at least 1, got {self.repeat}; leave the source out to have none of its records"
            )
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit must be at least 1, got {self.limit}; null takes all records")

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The chosen records, all of them once before any comes again."""
        records = self.source.read(folder, skip_invalid=skip_invalid)
        if self.limit is not None and self.limit < len(records):
            records = [records[i * len(records) // self.limit] for i in range(self.limit)]
        return records * self.repeat


@dataclass
class ZsRE:
    """A zsRE file in the format of MEND and EasyEdit.

    Args:
        file: file name, relative to the data module's `path`.
    """

    file: str

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        return read_zsre(folder / self.file, skip_invalid=skip_invalid)


@dataclass
class MQuAKE:
    """A file of MQuAKE: its multi-hop cases, or its single edits as questions (PokeMQA); no locality of its own.

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
    """

    file: str
    split_file: str | None = None
    split: str = "train"

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        case_ids = read_split(folder / self.split_file, self.split) if self.split_file else None
        return read_counterfact(folder / self.file, case_ids=case_ids, skip_invalid=skip_invalid)


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
class WikiBigEdit:
    """A WikiBigEdit file: its locality asks the same relation of another subject.

    Args:
        file: file name, relative to the data module's `path`.
        split_file: file with lists of row numbers, counted from 0, relative to `path`.
        split: which of those lists to take; all rows where there is no `split_file`.
    """

    file: str
    split_file: str | None = None
    split: str = "train"

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        numbers = read_split(folder / self.split_file, self.split) if self.split_file else None
        return read_wikibigedit(folder / self.file, row_numbers=numbers, skip_invalid=skip_invalid)


@dataclass
class QAEdit:
    """A QAEdit file: questions that language models get wrong.

    Args:
        file: file name, relative to the data module's `path`.
    """

    file: str

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        return read_qaedit(folder / self.file, skip_invalid=skip_invalid)


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
