"""Memories searched in clusters against memories searched exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from editors.methods.serac import memory as memory_module
from editors.methods.serac import search
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.search import ClusteredKeys
from editors.texts.requests import EditRequest

WIDTH, COUNT = 8, 400


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def requests(first: int, count: int, target: str = "Cairo") -> list[EditRequest]:
    return [EditRequest(f"What is the capital of land {i}?", target) for i in range(first, first + count)]


@pytest.fixture
def clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_CLUSTERED_FROM", 100)


def filled() -> EditMemory:
    memory = EditMemory(WIDTH)
    memory.write(requests(0, COUNT), vectors(COUNT, 0))
    return memory


def replace(memory: EditMemory) -> None:
    """New keys for two edits in memory, one of them twice, beside two new edits."""
    chosen = [*requests(3, 1), *requests(COUNT, 2), *requests(250, 1), *requests(3, 1, "Rome")]
    memory.write(chosen, vectors(5, 1))


def remove(memory: EditMemory) -> None:
    for number in (0, 17, COUNT - 1):
        memory.remove(requests(number, 1)[0].prompt)


def grow(memory: EditMemory) -> None:
    for part in range(5):
        memory.write(requests(1000 + 100 * part, 100), vectors(100, 10 + part))


def all_of_it(memory: EditMemory) -> None:
    remove(memory)
    replace(memory)
    memory.nearest(vectors(1, 2))
    grow(memory)
    remove_again = requests(1001, 1)[0].prompt
    memory.remove(remove_again)


@pytest.mark.parametrize("change", [lambda _: None, replace, remove, grow, all_of_it])
@pytest.mark.parametrize("searched_before", [False, True])
def test_every_key_is_found_at_its_place_whatever_was_done(
    change: Callable[[EditMemory], None], searched_before: bool, clustered: None
) -> None:
    memory = filled()
    if searched_before:
        memory.nearest(vectors(1, 2))
    change(memory)
    index, distance = memory.nearest(memory.keys + 1e-4)
    assert memory._clusters is not None
    assert torch.equal(index, torch.arange(len(memory)))
    assert (distance < 1e-6).all()


def test_with_all_clusters_the_search_is_exact(clustered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_PROBED", COUNT)
    memory = filled()
    all_of_it(memory)
    queries = vectors(50, 5)
    index, distance = memory.nearest(queries)
    wanted = torch.cdist(queries, memory.keys).min(dim=1)
    assert torch.equal(index, wanted.indices)
    torch.testing.assert_close(distance, wanted.values.square())


def test_few_clusters_find_the_nearest_of_most_far_queries() -> None:
    keys, queries = vectors(20_000, 0), vectors(200, 1)
    found = ClusteredKeys(keys).nearest(queries)
    assert (found == torch.cdist(queries, keys).argmin(dim=1)).float().mean() > 0.8


def test_clusters_are_made_anew_when_the_memory_has_doubled(clustered: None) -> None:
    memory = filled()
    memory.nearest(vectors(1, 2))
    first = memory._clusters
    grow(memory)
    memory.nearest(vectors(1, 2))
    assert memory._clusters is not first
    assert memory._clusters is not None
    assert memory._clusters.built_with == len(memory) == COUNT + 500


def test_without_the_library_search_is_exact(clustered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "is_installed", lambda: False)
    memory, queries = filled(), vectors(50, 5)
    assert torch.equal(memory.nearest(queries)[0], torch.cdist(queries, memory.keys).argmin(dim=1))
    assert memory._clusters is None


def test_what_no_cluster_has_is_searched_exactly(clustered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = filled(), vectors(5, 5)
    wanted = torch.cdist(queries, memory.keys).argmin(dim=1)
    real = ClusteredKeys.nearest

    def misses_two(self: ClusteredKeys, texts: Tensor) -> Tensor:
        found = real(self, texts)
        found[[1, 3]] = -1
        return found

    monkeypatch.setattr(ClusteredKeys, "nearest", misses_two)
    index, _ = memory.nearest(queries)
    assert torch.equal(index[[1, 3]], wanted[[1, 3]])


def test_a_copy_has_clusters_of_its_own(clustered: None) -> None:
    memory = filled()
    memory.nearest(vectors(1, 2))
    copy = memory.to("cpu")
    remove(copy)
    assert memory.nearest(memory.keys)[0].tolist() == list(range(COUNT))
