"""Tests of `editors.making.normaliser` against Welford's recurrence, one row at a time in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing, nn

from editors.making.normaliser import RunningNormaliser

WIDTH = 5


def welford(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of `rows` `[N, width]`, row by row."""
    mean, squared = torch.zeros(rows.shape[1]).double(), torch.zeros(rows.shape[1]).double()
    for k, row in enumerate(rows.double(), start=1):
        difference = row - mean
        mean = mean + difference / k
        squared = squared + difference * (row - mean)
    return mean, squared


def random_rows(count: int, seed: int = 0) -> Tensor:
    """`[count, WIDTH]` rows whose features differ in place and size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.tensor([0.0, 3.0, -0.5, 1e-3, 20.0])
    size = torch.tensor([1.0, 0.1, 5.0, 1e-4, 2.0])
    return torch.randn(count, WIDTH, generator=generator) * size + offset


def trained_on(batches: Sequence[Tensor]) -> RunningNormaliser:
    """A normaliser that has seen `batches`, one after the other."""
    normaliser = RunningNormaliser(WIDTH)
    for batch in batches:
        normaliser(batch)
    return normaliser


def assert_statistics(normaliser: RunningNormaliser, rows: Tensor) -> None:
    """Assert that the statistics are those of all `rows`."""
    mean, squared = welford(rows)
    assert normaliser.count.item() == len(rows)
    torch.testing.assert_close(normaliser.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normaliser.squared_deviation.double(), squared, rtol=1e-3, atol=1e-9)


def same_state(first: RunningNormaliser, second: RunningNormaliser) -> bool:
    """Whether all buffers are bit-identical."""
    other = second.state_dict()
    return all(torch.equal(a, other[name]) and a.dtype == other[name].dtype for name, a in first.state_dict().items())


# --- statistics ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), max_size=8), seed=st.integers(0, 1000))
def test_batches_of_any_size_give_the_statistics_of_all_rows(sizes: list[int], seed: int) -> None:
    rows = random_rows(sum(sizes), seed)
    assert_statistics(trained_on(rows.split(sizes) if sizes else []), rows)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2))
def test_rows_are_normalised_with_the_statistics_of_all_rows_so_far(sizes: list[int]) -> None:
    rows = random_rows(sum(sizes))
    normaliser = trained_on(rows.split(sizes)[:-1])
    mean, squared = welford(rows)
    last = rows.split(sizes)[-1]
    expected = (last - mean) / ((squared / (len(rows) - 1)).sqrt() + 1e-7)
    torch.testing.assert_close(normaliser(last).double(), expected, rtol=2e-3, atol=2e-3)


def test_normalised_rows_have_zero_mean_and_unit_variance() -> None:
    normalised = RunningNormaliser(WIDTH)(random_rows(500))
    torch.testing.assert_close(normalised.mean(dim=0), torch.zeros(WIDTH), rtol=0, atol=0.01)
    torch.testing.assert_close(normalised.std(dim=0), torch.ones(WIDTH), rtol=0.01, atol=0)


def test_one_row_passes_unchanged_and_is_remembered() -> None:
    rows = random_rows(2)
    normaliser = RunningNormaliser(WIDTH)
    assert torch.equal(normaliser(rows[:1]), rows[:1])
    assert torch.equal(normaliser.std(), torch.ones(WIDTH))
    assert normaliser.count.item() == 1
    assert normaliser(rows[1:]).isfinite().all()
    assert_statistics(normaliser, rows)


def test_before_any_row_nothing_is_changed() -> None:
    rows = random_rows(3)
    assert torch.equal(RunningNormaliser(WIDTH).eval()(rows), rows)


def test_no_rows_change_nothing() -> None:
    normaliser = trained_on([random_rows(4)])
    before = trained_on([random_rows(4)])
    assert normaliser(torch.empty(0, WIDTH)).shape == (0, WIDTH)
    assert same_state(normaliser, before)


def test_a_constant_feature_stays_finite() -> None:
    rows = random_rows(10)
    rows[:, 2] = 0.75
    normalised = RunningNormaliser(WIDTH)(rows)
    assert normalised.isfinite().all()
    assert torch.equal(normalised[:, 2], torch.zeros(10))


def test_many_batches_do_not_drift() -> None:
    """A mean far from zero costs the naive sum of squares all its digits."""
    rows = torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(0)) + 100
    assert_statistics(trained_on(rows.split(40)), rows)


@pytest.mark.parametrize("count", [2**24, 2**53], ids=["float32", "float64"])
def test_the_count_is_exact_beyond(count: int) -> None:
    normaliser = trained_on([random_rows(2)])
    normaliser.count.fill_(count)
    normaliser(random_rows(1))
    assert normaliser.count.item() == count + 1


# --- training, evaluation, resuming ----------------------------------------------------------------------------------


def test_statistics_are_frozen_outside_training() -> None:
    normaliser, before = trained_on([random_rows(6)]), trained_on([random_rows(6)])
    normaliser.eval()
    rows = random_rows(20, seed=1) * 7
    expected = (rows - before.mean) / (before.std() + 1e-7)
    torch.testing.assert_close(normaliser(rows), expected)
    assert same_state(normaliser, before)


def test_resuming_from_a_checkpoint_equals_going_on(tmp_path: Path) -> None:
    batches = random_rows(30).split([3, 7, 1, 11, 8])
    torch.save(trained_on(batches[:2]).state_dict(), tmp_path / "state.pt")
    resumed = RunningNormaliser(WIDTH)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for batch in batches[2:]:
        resumed(batch)
    assert same_state(resumed, trained_on(batches))


def test_statistics_are_constants_to_autograd() -> None:
    normaliser = trained_on([random_rows(6)])
    rows = random_rows(4, seed=1).requires_grad_()
    normaliser(rows).sum().backward()
    torch.testing.assert_close(rows.grad, (1 / (normaliser.std() + 1e-7)).expand(4, -1))
    assert not any(buffer.requires_grad for buffer in normaliser.buffers())
    assert list(normaliser.parameters()) == []


@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, nn.Module.float])
def test_a_cast_loses_no_digit_of_the_statistics(cast: Callable[[nn.Module], nn.Module]) -> None:
    normaliser, rows = trained_on([random_rows(6)]), random_rows(7, seed=1)
    cast(nn.ModuleList([normaliser]))
    assert same_state(normaliser, trained_on([random_rows(6)]))
    normaliser(rows)
    assert same_state(normaliser, trained_on([random_rows(6), rows]))


def test_statistics_may_be_cast_to_double() -> None:
    normaliser = trained_on([random_rows(6)]).double()
    assert normaliser.mean.dtype == normaliser.squared_deviation.dtype == torch.float64
    assert normaliser.count.dtype == torch.int64


def test_no_buffer_needs_float64() -> None:
    """Apple's MPS does not have it."""
    assert {b.dtype for b in trained_on([random_rows(6)]).buffers()} == {torch.float32, torch.int64}


def test_older_states_with_a_float64_count_load() -> None:
    state = trained_on([random_rows(6)]).state_dict()
    normaliser = RunningNormaliser(WIDTH)
    normaliser.load_state_dict({**state, "count": state["count"].double()})
    assert same_state(normaliser, trained_on([random_rows(6)]))


# --- several processes -----------------------------------------------------------------------------------------------

# Rows of each process at each step; unequal, and none at all in places.
STEPS = ((3, 4), (1, 0), (0, 0), (2, 9), (0, 5))


def split_by_step_and_process(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each step the rows of the two processes."""
    parts = iter(rows.split([count for counts in STEPS for count in counts]))
    return [(next(parts), next(parts)) for _ in STEPS]


def run_process(rank: int, folder: str) -> None:
    """Train on this process's share of the rows and leave statistics and output behind."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    normaliser = RunningNormaliser(WIDTH)
    outputs = [normaliser(rows[rank]) for rows in split_by_step_and_process(random_rows(sum(map(sum, STEPS))))]
    torch.save((normaliser.state_dict(), outputs), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Tensor], list[Tensor]]]:
    """Final statistics and all outputs of two gloo processes."""
    folder = tmp_path_factory.mktemp("gloo")
    multiprocessing.spawn(run_process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.distributed
def test_all_processes_hold_the_statistics_of_all_rows(
    two_processes: list[tuple[dict[str, Tensor], list[Tensor]]],
) -> None:
    rows = random_rows(sum(map(sum, STEPS)))
    for state, _ in two_processes:
        normaliser = RunningNormaliser(WIDTH)
        normaliser.load_state_dict(state)
        assert_statistics(normaliser, rows)
    assert all(torch.equal(two_processes[1][0][name], buffer) for name, buffer in two_processes[0][0].items())


@pytest.mark.distributed
def test_processes_normalise_as_one_process_with_all_rows_would(
    two_processes: list[tuple[dict[str, Tensor], list[Tensor]]],
) -> None:
    single = RunningNormaliser(WIDTH)
    for step, parts in enumerate(split_by_step_and_process(random_rows(sum(map(sum, STEPS))))):
        expected = single(torch.cat(parts))
        actual = torch.cat([outputs[step] for _, outputs in two_processes])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
