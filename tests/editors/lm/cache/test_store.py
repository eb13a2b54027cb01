"""Tests of the store: what is found is right, whoever wrote it and whatever went wrong."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.common.errors import EditorError
from editors.lm.cache.files import Entry, Key
from editors.lm.cache.store import PrefixCache, TensorStore, model_facts
from tests.tiny_models import HIDDEN, tiny_model


def entry(key: Key) -> Entry:
    """Tensors that only this key has, of several types and lengths."""
    table = torch.tensor(key).unsqueeze(1) + torch.arange(HIDDEN) / HIDDEN
    return {"states": table, "half": table[:1].half(), "ids": torch.tensor([7, *key]), "loss": table.new_tensor([0.3])}


def same(found: Entry | None, expected: Entry) -> bool:
    """Equal tensors of equal types under equal names."""
    if found is None or list(found) != list(expected):
        return False
    return all(found[n].dtype == part.dtype and torch.equal(found[n], part) for n, part in expected.items())


def opened(settings: PrefixCache, architecture: str = "llama", seed: int = 0, **facts: object) -> TensorStore:
    model = tiny_model(architecture, seed)
    return TensorStore(settings, model, {**model_facts(model), "kind": "prefix", "depth": 3, **facts})


@pytest.fixture(params=["memory", "folder"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> PrefixCache:
    return PrefixCache(folder=str(tmp_path) if request.param == "folder" else None)


def test_an_entry_is_found_by_its_whole_key(settings: PrefixCache) -> None:
    store = opened(settings)
    for key in ((1, 2, 3), (4, 5)):
        store.put(key, entry(key))
    store.flush()
    assert all(same(store.get(key), entry(key)) for key in ((1, 2, 3), (4, 5)))
    assert [store.get(key) for key in ((1, 2), (1, 2, 4), (1, 2, 3, 4), ())] == [None] * 4
    assert (store.hits, store.misses) == (2, 4)


def test_what_autocast_computed_is_not_found_without_it(settings: PrefixCache) -> None:
    store = opened(settings)
    with torch.autocast("cpu", torch.bfloat16):
        store.put((1, 2), entry((1, 2)))
        store.flush()
        assert store.get((1, 2)) is not None
    assert store.get((1, 2)) is None


def test_entries_of_different_types_come_back_as_they_were(settings: PrefixCache) -> None:
    store = opened(settings)
    plain = {name: part.float() for name, part in entry((1, 2)).items()}
    half = {name: part.bfloat16() for name, part in plain.items()}
    for key, kept in (((1, 2), plain), ((3, 4), half)):
        store.put(key, kept)
    store.flush()
    for key, kept in (((1, 2), plain), ((3, 4), half)):
        assert same(store.get(key), kept)


def test_where_there_is_no_more_room_nothing_is_copied(settings: PrefixCache) -> None:
    store = opened(dataclasses.replace(settings, megabytes=1))
    for number in range(4):
        store.put((number, *LONG), entry((number, *LONG)))
        store.flush()

    class Uncopied(torch.Tensor):
        def to(self, *_: Any, **__: Any) -> torch.Tensor:
            raise AssertionError("copied")

    store.put((9,), {name: part.as_subclass(Uncopied) for name, part in entry((9, *LONG)).items()})


def test_only_what_is_missing_is_computed_and_that_once(settings: PrefixCache) -> None:
    store = opened(settings)
    store.put((1, 2), entry((1, 2)))
    store.flush()
    keys = [(3,), (1, 2), (4, 5), (3,)]
    asked: list[list[int]] = []

    def compute(numbers: list[int]) -> list[tuple[int, Entry]]:
        asked.append(numbers)
        return [(number, entry(keys[number])) for number in reversed(numbers)]

    for _ in range(2):
        found = store.complete(keys, torch.device("cpu"), compute)
        assert all(same(part, entry(key)) for part, key in zip(found, keys, strict=True))
    assert [{keys[number] for number in numbers} for numbers in asked] == [{(3,), (4, 5)}]
    assert len(asked[0]) == 2


# Two of them and their ids fit into a megabyte, and three do not.
LONG = tuple(range(1_000_000 // HIDDEN // 4 // 3))


def test_what_came_first_stays_when_the_room_is_used_up() -> None:
    store = opened(PrefixCache(megabytes=1))
    for number in range(5):
        store.put((number, *LONG), entry((number, *LONG)))
    assert [store.get((number, *LONG)) is not None for number in range(5)] == [True, True, False, False, False]


def test_a_folder_holds_no_more_than_it_may_of_each_kind(tmp_path: Path) -> None:
    for number in range(5):
        for kind in ("prefix", "factors"):
            store = opened(PrefixCache(megabytes=1, folder=str(tmp_path)), kind=kind)
            store.put((number, *LONG), entry((number, *LONG)))
            store.flush()
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    assert all(0 < sum(file.stat().st_size for file in folder.iterdir()) <= 1_000_000 for folder in folders)


def test_bfloat16_rounds_tables_only_and_gives_back_the_types_that_came(tmp_path: Path) -> None:
    for folder in (None, str(tmp_path)):
        store = opened(PrefixCache(dtype="bfloat16", folder=folder))
        store.put((1, 301), entry((1, 301)))
        store.flush()
        exact = entry((1, 301))
        rounded = {name: exact[name].bfloat16().to(exact[name].dtype) for name in ("states", "half")}
        assert same(store.get((1, 301)), {**exact, **rounded})
        assert not same(store.get((1, 301)), exact)


def test_a_later_run_finds_what_an_earlier_one_wrote_and_no_other_model_does(tmp_path: Path) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    store = opened(settings)
    store.put((1, 2), entry((1, 2)))
    store.flush()
    assert same(opened(settings).get((1, 2)), entry((1, 2)))
    rounded = PrefixCache(folder=str(tmp_path), dtype="bfloat16")
    others = (
        opened(settings, seed=1), opened(settings, depth=2), opened(settings, kind="factors"),
        opened(settings, "qwen2"), opened(rounded),
    )  # fmt: skip
    assert [other.get((1, 2)) for other in others] == [None] * 5


def test_a_file_in_the_folder_of_another_model_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    for seed in (0, 1):
        store = opened(settings, seed=seed)
        store.put((1, 2 + seed), entry((1, 2 + seed)))
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
        store.put(ids, entry(ids))
        store.flush()
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-7])
    (files[0].parent / ".half.safetensors.x.tmp").write_bytes(b"half")
    reader = opened(settings)
    assert sum(reader.get(ids) is not None for ids in ((1, 2), (3, 4))) == 1
    assert f"{files[0]} is left out" in caplog.text


@pytest.mark.parametrize("part", ["header", "keys", "key_lengths", "rows", "checksums", "part states", "part ids"])
def test_an_entry_with_a_wrong_bit_is_not_found_and_the_others_are(tmp_path: Path, part: str) -> None:
    """Whichever bit it is: what is found is right."""
    settings = PrefixCache(folder=str(tmp_path))
    store = opened(settings)
    keys = [(1, 2), (3, 4, 5), (6,)]
    for key in keys:
        store.put(key, entry(key))
    store.flush()
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    found = []
    for place in places_of(whole, part)[:: 40 if part == "part states" else 3]:
        for bit in (0, 3, 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            reader = opened(settings)
            answers = {key: reader.get(key) for key in keys}
            assert all(answer is None or same(answer, entry(key)) for key, answer in answers.items())
            found.append(sum(answer is not None for answer in answers.values()))
    # A wrong bit in the tensors of one entry harms that one only.
    if part.startswith("part"):
        assert set(found) == {2}
    path.write_bytes(whole)
    assert all(same(opened(settings).get(key), entry(key)) for key in keys)


def places_of(content: bytes, name: str) -> list[int]:
    """The places of some bytes in a safetensors file: of its header, or of one tensor."""
    length = int.from_bytes(content[:8], "little")
    if name == "header":
        return list(range(0, 8 + length, 7))
    start, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    return list(range(8 + length + start, 8 + length + end))


def test_files_of_an_earlier_format_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = PrefixCache(folder=str(tmp_path))
    store = opened(settings)
    store.put((1, 2), entry((1, 2)))
    store.flush()
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes().replace(b"hyperedit-tensors-2", b"hyperedit-tensors-1"))
    assert opened(settings).get((1, 2)) is None
    assert "its format is 'hyperedit-tensors-1'" in caplog.text


def _write(settings: PrefixCache, process: int) -> None:
    store = opened(settings)
    for number in range(20):
        ids = (process * (number % 2), number)
        store.put(ids, entry(ids))
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
        assert same(reader.get(ids), entry(ids))


def test_room_for_nothing_is_refused() -> None:
    with pytest.raises(EditorError, match=r"prefix_cache\.megabytes must be at least 1, got 0; .* null"):
        PrefixCache(megabytes=0)
