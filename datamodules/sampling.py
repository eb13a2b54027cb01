"""Which records form which batch: shuffled by seed and epoch, grouped by length, divided among processes, resumable."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

# Batches are cut from windows of this many batches, sorted by length: wide enough to pad little, narrow enough that
# the order stays random.
_WINDOW_BATCHES = 32

EpisodeNumbers = tuple[int, list[list[int]]]


class EpisodeSampler(DistributedSampler[Any]):
    """Yields batches as `(epoch, episodes)`; each episode is a list of record numbers.

    A pure function of (seed, epoch), so a run resumed in the middle of an epoch sees exactly the batches it would have
    seen. A `DistributedSampler`, so that Lightning leaves the division among processes to it.

    Args:
        lengths: a length for each record; records of similar length share a batch.
        episodes_per_batch: E on each process.
        edits_per_episode: how many records form one episode in training; in evaluation each record is its own.
        shuffle: training order; otherwise evaluation order: all records by length, none dropped and none counted twice,
            in the same number of batches on every process.
        seed: seed of the order.
        rank: number of this process.
        num_replicas: number of processes.

    >>> sampler = EpisodeSampler([30, 10, 20, 11, 31], episodes_per_batch=2, shuffle=False)
    >>> [episodes for _, episodes in sampler]
    [[[1]], [[3], [2]], [[0], [4]]]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        episodes_per_batch: int,
        edits_per_episode: int = 1,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        records: Any = range(len(lengths))  # only its length is used
        super().__init__(records, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self._lengths = lengths
        self._episodes = episodes_per_batch
        self._edits = edits_per_episode
        self.skip_batches = 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this process."""
        return len(self._batches())

    def __iter__(self) -> Iterator[EpisodeNumbers]:
        """The batches of this epoch on this process, less the first `skip_batches`."""
        return iter([(self.epoch, batch) for batch in self._batches()[self.skip_batches :]])

    def counts(self, batch: int) -> bool:
        """Whether batch number `batch` of this process is its own, and not one that only keeps it in step."""
        return self.shuffle or batch * self.num_replicas + self.rank < len(self._lengths)

    def _batches(self) -> list[list[list[int]]]:
        if not self.shuffle:
            return self._evaluation_batches()
        order = self._training_order()
        episodes = [order[i : i + self._edits] for i in range(0, len(order), self._edits)]
        return self._shared_equally([episodes[i : i + self._episodes] for i in range(0, len(episodes), self._episodes)])

    def _evaluation_batches(self) -> list[list[list[int]]]:
        """As many batches on every process, of nearly equal size: the processes of a sharded model run in step.

        Where there are fewer records than batches, the shortest record fills the rest; see `counts`.
        """
        order = sorted(range(len(self._lengths)), key=self._lengths.__getitem__)
        count = len(order)
        wanted = self.num_replicas * math.ceil(count / (self._episodes * self.num_replicas))
        cut = min(wanted, count)
        batches = [[[record] for record in order[count * i // cut : count * (i + 1) // cut]] for i in range(cut)]
        batches += [[order[:1]]] * (wanted - cut)
        return batches[self.rank :: self.num_replicas]

    def _training_order(self) -> list[int]:
        """All records, shuffled, then sorted by length within windows."""
        order = list(range(len(self._lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        window = self._episodes * self._edits * self.num_replicas * _WINDOW_BATCHES
        parts = [sorted(order[i : i + window], key=self._lengths.__getitem__) for i in range(0, len(order), window)]
        return [index for part in parts for index in part]

    def _shared_equally(self, batches: list[list[list[int]]]) -> list[list[list[int]]]:
        """Full batches in random order, the same number on every process; all batches where there is no full group."""
        full = [batch for batch in batches if len(batch) == self._episodes]
        groups = [full[i : i + self.num_replicas] for i in range(0, len(full), self.num_replicas)]
        groups = [group for group in groups if len(group) == self.num_replicas]
        if not groups:
            return [batches[self.rank % len(batches)]]
        random.Random(f"{self.seed}/{self.epoch}/batches").shuffle(groups)
        return [group[self.rank] for group in groups]


class EpisodeLoader(DataLoader[Any]):
    """A loader whose position in the epoch is saved in Lightning's checkpoints.

    Args:
        dataset: maps a list of episodes to a batch.
        sampler: decides on the batches.
        num_workers: worker processes.
    """

    sampler: EpisodeSampler

    def __init__(self, dataset: Dataset[Any], sampler: EpisodeSampler, num_workers: int = 0) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=False,
            pin_memory=torch.cuda.is_available(),
        )
        self._yielded = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of the epoch, from the resumed position on."""
        self._yielded = self.sampler.skip_batches
        # With worker processes the sampler is started more than once here.
        iterator = super().__iter__()
        self.sampler.skip_batches = 0
        for batch in iterator:
            counted = self.sampler.counts(self._yielded)
            self._yielded += 1
            yield batch if counted else replace(batch, counted=False)

    def state_dict(self) -> dict[str, int]:
        """Batches of the current epoch that were handed out."""
        return {"yielded": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that were handed out before; a finished epoch starts anew."""
        self._yielded = state["yielded"] % len(self.sampler)
        self.sampler.skip_batches = self._yielded
