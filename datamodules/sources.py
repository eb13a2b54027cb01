"""Record sources: the data sets by name, each one file (or the built-in facts), to be listed in a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamodules.counterfact import read_counterfact, read_split
from datamodules.facts import world_facts
from datamodules.knowedit import read_knowedit
from datamodules.mquake import read_mquake_qa
from datamodules.records import EditRecord
from datamodules.zsre import read_zsre


@dataclass
class ZsRE:
    """A zsRE file in the format of MEND and EasyEdit.

    Args:
        file: file name, relative to the data module's `path`.
        repeat: how often each record comes in an epoch, to give a small file weight beside a larger one.
    """

    file: str
    repeat: int = 1

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

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        """The file's records."""
        case_ids = read_split(folder / self.split_file, self.split) if self.split_file else None
        records = read_counterfact(folder / self.file, case_ids=case_ids, skip_invalid=skip_invalid)
        if self.limit is None or self.limit >= len(records):
            return records
        return [records[i * len(records) // self.limit] for i in range(self.limit)]


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
