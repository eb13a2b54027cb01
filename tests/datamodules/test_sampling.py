"""Tests of `datamodules.sampling`: which records come when, on which process, and after a resume."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from torch.utils.data import Dataset

from datamodules.sampling import EpisodeLoader, EpisodeNumbers, EpisodeSampler
from editors.texts.batches import collate_texts
from editors.texts.episodes import EditBatch, RequestBatch

LENGTHS = random.Random(7).choices(range(5, 80), k=203)
BATCH = 4


def sampler(
    lengths: Sequence[int] = LENGTHS, episodes: int = BATCH, edits: int = 1, *, shuffle: bool = True, epoch: int = 0,
    seed: int = 0, rank: int = 0, processes: int = 1,
) -> EpisodeSampler:  # fmt: skip
    made = EpisodeSampler(lengths, episodes, edits, shuffle=shuffle, seed=seed, rank=rank, num_replicas=processes)
    made.set_epoch(epoch)
    return made


def batches(of: EpisodeSampler) -> list[list[list[int]]]:
    return [episodes for _, episodes in of]


def records(of: EpisodeSampler) -> list[int]:
    return [record for batch in batches(of) for episode in batch for record in episode]


# --- training order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [1, 3])
def test_every_record_comes_once_in_an_epoch_and_only_the_last_part_batch_is_left_out(edits: int) -> None:
    seen = records(sampler(edits=edits))
    assert len(set(seen)) == len(seen)
    assert 0 <= len(LENGTHS) - len(seen) < BATCH * edits


def test_which_records_are_left_out_differs_between_epochs() -> None:
    left_out = [set(range(len(LENGTHS))) - set(records(sampler(epoch=epoch))) for epoch in range(5)]
    assert all(len(left) == len(LENGTHS) % BATCH for left in left_out)
    assert len({tuple(sorted(left)) for left in left_out}) > 1


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    order = batches(sampler(seed=3, epoch=2))
    random.seed(99)
    assert batches(sampler(seed=3, epoch=2)) == order
    assert batches(sampler(seed=4, epoch=2)) != order
    assert batches(sampler(seed=3, epoch=1)) != order


def test_batches_do_not_come_in_order_of_length() -> None:
    means = [sum(LENGTHS[e[0]] for e in batch) / BATCH for batch in batches(sampler())]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_batches_hold_other_records_in_the_next_epoch() -> None:
    many = [length for length in LENGTHS for _ in range(10)]
    first, second = ({frozenset(map(tuple, batch)) for batch in batches(sampler(many, epoch=e))} for e in (0, 1))
    assert len(first & second) < len(first) / 10


def padding(order: Sequence[int], lengths: Sequence[int]) -> int:
    """Padding in batches cut from `order`."""
    cut = [[lengths[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in cut)


def test_grouping_by_length_saves_most_of_the_padding() -> None:
    shuffled = list(range(len(LENGTHS)))
    random.Random(0).shuffle(shuffled)
    assert padding(records(sampler()), LENGTHS) < 0.25 * padding(shuffled, LENGTHS)


@pytest.mark.parametrize(("count", "processes"), [(203, 2), (203, 3), (16, 4), (11, 2)])
def test_processes_share_an_epoch_in_equal_and_disjoint_parts(count: int, processes: int) -> None:
    parts = [sampler(LENGTHS[:count], rank=rank, processes=processes) for rank in range(processes)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(part) == len(batches(part)) for part in parts)
    seen = [record for part in parts for record in records(part)]
    assert len(set(seen)) == len(seen)
    assert count - len(seen) < BATCH * processes


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_too_few_records_for_a_full_batch_still_give_every_process_one(processes: int) -> None:
    parts = [batches(sampler(LENGTHS[:3], rank=rank, processes=processes)) for rank in range(processes)]
    assert all(len(part) == 1 for part in parts)
    assert {record for part in parts for episode in part[0] for record in episode} == {0, 1, 2}


class Numbered(Dataset[EditBatch]):
    """A data set of batches without a text."""

    def __getitem__(self, numbers: EpisodeNumbers) -> EditBatch:
        nothing = collate_texts([], [], 0)
        return EditBatch(RequestBatch((), nothing, len(numbers[1])), nothing, nothing)


# --- evaluation order ------------------------------------------------------------------------------------------------


def evaluation(count: int, processes: int, episodes: int = BATCH) -> list[EpisodeSampler]:
    """The samplers of all processes over `count` records."""
    return [
        sampler(LENGTHS[:count], episodes, shuffle=False, rank=rank, processes=processes) for rank in range(processes)
    ]


@pytest.mark.parametrize("episodes", [1, BATCH])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 6, 24, 203])
def test_no_evaluation_record_is_dropped_or_counted_twice(count: int, processes: int, episodes: int) -> None:
    parts = evaluation(count, processes, episodes)
    counted = [batch for part in parts for number, batch in enumerate(batches(part)) if part.counts(number)]
    assert sorted(record for batch in counted for (record,) in batch) == list(range(count))


@pytest.mark.parametrize("episodes", [1, BATCH])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 5, 6, 24, 203])
def test_every_process_runs_as_many_evaluation_batches(count: int, processes: int, episodes: int) -> None:
    """Even where there are fewer records than processes; and none of them is larger than asked for."""
    parts = evaluation(count, processes, episodes)
    assert {len(part) for part in parts} == {math.ceil(count / (processes * episodes))}
    assert all(len(part) == len(batches(part)) for part in parts)
    assert all(1 <= len(batch) <= episodes for part in parts for batch in batches(part))


def test_batches_that_fill_up_are_marked() -> None:
    parts = [EpisodeLoader(Numbered(), part) for part in evaluation(3, processes=2, episodes=1)]
    assert [[batch.counted for batch in part] for part in parts] == [[True, True], [True, False]]
    assert all(batch.counted for batch in EpisodeLoader(Numbered(), sampler(LENGTHS[:3], rank=1, processes=2)))


def test_evaluation_order_is_the_same_in_every_epoch() -> None:
    assert batches(sampler(shuffle=False, epoch=0)) == batches(sampler(shuffle=False, epoch=1))


# --- resuming --------------------------------------------------------------------------------------------------------


class Echo(Dataset[EpisodeNumbers]):
    """A data set that gives back what it is asked for."""

    def __getitem__(self, numbers: EpisodeNumbers) -> EpisodeNumbers:
        return numbers


def loader(epoch: int = 1, workers: int = 0) -> EpisodeLoader:
    return EpisodeLoader(Echo(), sampler(epoch=epoch), workers)


def test_sampler_skips_batches() -> None:
    resumed = sampler()
    resumed.skip_batches = 5
    assert batches(resumed) == batches(sampler())[5:]


def test_skipping_does_not_change_the_length_of_the_epoch() -> None:
    resumed = sampler()
    resumed.skip_batches = 5
    assert len(resumed) == len(batches(sampler()))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [1, 7])
def test_resumed_loader_gives_the_rest_of_the_epoch_and_then_whole_ones(after: int, workers: int) -> None:
    whole = list(loader())
    cut_off = loader(workers=workers)
    iterator = iter(cut_off)
    assert [next(iterator) for _ in range(after)] == whole[:after]
    resumed = loader(workers=workers)
    resumed.load_state_dict(cut_off.state_dict())
    assert resumed.state_dict() == cut_off.state_dict()
    assert list(resumed) == whole[after:]
    assert list(resumed) == whole


def test_resuming_after_a_whole_epoch_starts_the_next() -> None:
    finished = loader()
    assert len(list(finished)) == len(finished)
    resumed = loader(epoch=2)
    resumed.load_state_dict(finished.state_dict())
    assert list(resumed) == list(loader(epoch=2))


def test_position_may_be_given_after_the_iterator_was_made() -> None:
    """Lightning makes the iterator before it restores the position and sets the epoch."""
    resumed = loader(epoch=0)
    iterator = iter(resumed)
    resumed.load_state_dict({"yielded": 3})
    resumed.sampler.set_epoch(1)
    assert list(iterator) == list(loader(epoch=1))[3:]


def test_a_second_resume_counts_from_the_start_of_the_epoch() -> None:
    first = loader()
    first.load_state_dict({"yielded": 4})
    iterator = iter(first)
    next(iterator)
    assert first.state_dict() == {"yielded": 5}
