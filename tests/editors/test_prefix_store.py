"""Tests of the store: what is found is right, whoever wrote it and whatever went wrong."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.errors import EditorError
from editors.prefix_store import PrefixCache, PrefixStore
from tests.tiny_models import HIDDEN, tiny_model

DEPTH = 3


def states(ids: tuple[int, ...]) -> Tensor:
    """Hidden states that only these ids have."""
    return torch.tensor(ids).unsqueeze(1) + torch.arange(HIDDEN) / HIDDEN


def opened(settings: PrefixCache, architecture: str = "llama", seed: int = 0, depth: int = DEPTH) -> PrefixStore:
    return PrefixStore(settings, tiny_model(architecture, seed), depth)


@pytest.fixture(params=["memory", "folder"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> PrefixCache:
    return PrefixCache(folder=str(tmp_path) if request.param == "folder" else None)


def test_a_text_is_found_by_all_its_ids(settings: PrefixCache) -> None:
    store = opened(settings)
    for ids in ((1, 2, 3), (4, 5)):
        store.put(ids, states(ids))
    store.flush()
    for ids in ((1, 2, 3), (4, 5)):
        found = store.get(ids)
        assert found is not None
        assert torch.equal(found, states(ids))
    assert [store.get(ids) for ids in ((1, 2), (1, 2, 4), (1, 2, 3, 4), ())] == [None] * 4
    assert (store.hits, store.misses) == (2, 4)


def test_what_came_first_stays_when_the_room_is_used_up() -> None:
    ids = tuple(range(1_000_000 // HIDDEN // 4 // 3))  # three of them fill a megabyte
    store = opened(PrefixCache(megabytes=1))
    for number in range(5):
        store.put((number, *ids), states((number, *ids)))
    assert [store.get((number, *ids)) is not None for number in range(5)] == [True, True, False, False, False]


def test_a_folder_holds_no_more_than_it_may(tmp_path: Path) -> None:
    ids = tuple(range(1_000_000 // HIDDEN // 4 // 3))
    for number in range(5):
        store = opened(PrefixCache(megabytes=1, folder=str(tmp_path)))
        store.put((number, *ids), states((number, *ids)))
        store.flush()
    assert 0 < sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) <= 1_000_000


def test_bfloat16_rounds_and_gives_back_the_type_of_the_model() -> None:
    store = opened(PrefixCache(dtype="bfloat16"))
    store.put((1, 2), states((1, 2)))
    found = store.get((1, 2))
    assert found is not None
    assert found.dtype == torch.float32
    assert torch.equal(found, states((1, 2)).bfloat16().float())


def test_a_later_run_finds_what_an_earlier_one_wrote_and_no_other_model_does(tmp_path: Path) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    store = opened(settings)
    store.put((1, 2), states((1, 2)))
    store.flush()
    found = opened(settings).get((1, 2))
    assert found is not None
    assert torch.equal(found, states((1, 2)))
    rounded = PrefixCache(folder=str(tmp_path), dtype="bfloat16")
    others = (opened(settings, seed=1), opened(settings, depth=2), opened(settings, "qwen2"), opened(rounded))
    assert [other.get((1, 2)) for other in others] == [None] * 4


def test_a_file_in_the_folder_of_another_model_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    for seed in (0, 1):
        store = opened(settings, seed=seed)
        store.put((1, 2 + seed), states((1, 2 + seed)))
        store.flush()
    first, second = tmp_path.iterdir()
    next(first.iterdir()).rename(second / "moved.safetensors")
    found = [opened(settings, seed=seed).get(ids) is not None for seed in (0, 1) for ids in ((1, 2), (1, 3))]
    assert sum(found) == 1
    assert "of another model" in caplog.text


def test_a_damaged_file_is_left_out_and_the_others_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a crash of the machine; a file whose process was killed while writing has another name."""
    settings = PrefixCache(folder=str(tmp_path))
    for ids in ((1, 2), (3, 4)):
        store = opened(settings)
        store.put(ids, states(ids))
        store.flush()
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-7])
    (files[0].parent / ".half.safetensors.x.tmp").write_bytes(b"half")
    reader = opened(settings)
    assert sum(reader.get(ids) is not None for ids in ((1, 2), (3, 4))) == 1
    assert f"{files[0]} is left out" in caplog.text


def _write(settings: PrefixCache, process: int) -> None:
    store = opened(settings)
    for number in range(20):
        ids = (process * (number % 2), number)
        store.put(ids, states(ids))
        store.flush()


def test_several_processes_write_to_one_folder(tmp_path: Path) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(settings, process)) for process in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    reader = opened(settings)
    for ids in ((process * (number % 2), number) for process in (1, 2) for number in range(20)):
        found = reader.get(ids)
        assert found is not None
        assert torch.equal(found, states(ids))


def test_room_for_nothing_is_refused() -> None:
    with pytest.raises(EditorError, match=r"prefix_cache\.megabytes must be at least 1, got 0; .* null"):
        PrefixCache(megabytes=0)
