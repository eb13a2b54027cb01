"""The edit memory against a dictionary and a naive search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from editors.common.errors import ArtifactError, EditorError
from editors.methods.serac import memory as memory_module
from editors.methods.serac.memory import EditMemory
from editors.texts.requests import EditRequest

WIDTH = 6


def requests(count: int, target: str = "Cairo") -> list[EditRequest]:
    return [EditRequest(f"What is the capital of land {i}?", f"{target} {i}") for i in range(count)]


def keys(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(count: int = 5) -> EditMemory:
    memory = EditMemory(WIDTH)
    memory.write(requests(count), keys(count))
    return memory


def assert_same(first: EditMemory, second: EditMemory) -> None:
    assert first.requests == second.requests
    assert torch.equal(first.keys, second.keys)
    queries = keys(7, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(first.nearest(queries), second.nearest(queries), strict=True))


def test_edits_written_together_and_one_by_one_are_the_same() -> None:
    one_by_one = EditMemory(WIDTH)
    for request, key in zip(requests(5), keys(5), strict=True):
        one_by_one.write([request], key.unsqueeze(0))
    assert_same(one_by_one, filled())
    assert len(one_by_one) == 5


def test_the_same_prompt_takes_the_place_of_the_old_edit() -> None:
    memory = filled()
    newer = EditRequest(requests(5)[2].prompt, "Rome")
    memory.write([newer], keys(1, seed=1))
    assert len(memory) == 5
    assert memory.request(2) == newer
    index, distance = memory.nearest(keys(1, seed=1))
    assert (index.item(), distance.item()) == (2, 0)
    assert memory.nearest(keys(5)[2:3])[1].item() > 0, "the old embedding is still found"


def test_of_two_edits_of_one_prompt_the_last_one_counts() -> None:
    memory = EditMemory(WIDTH)
    memory.write([EditRequest("a", "x"), EditRequest("b", "y"), EditRequest("a", "z")], keys(3))
    assert memory.requests == (EditRequest("a", "z"), EditRequest("b", "y"))
    assert torch.equal(memory.keys, keys(3)[[2, 1]])


def test_the_form_of_an_edit_is_kept_and_the_bare_one_is_not_said(tmp_path: Path) -> None:
    memory = EditMemory(WIDTH)
    memory.write([EditRequest("a", "x", form="chat"), EditRequest("b", "y")], keys(2))
    memory.save(tmp_path / "memory.safetensors")
    loaded, _ = EditMemory.load(tmp_path / "memory.safetensors")
    assert loaded.requests == memory.requests
    header = (tmp_path / "memory.safetensors").read_bytes()
    assert b'[\\"b\\", \\"y\\", null, null]' in header


def test_a_question_has_one_edit_whatever_its_form() -> None:
    """Edits are found by the question."""
    memory = EditMemory(WIDTH)
    memory.write([EditRequest("a", "x"), EditRequest("a", "z", form="chat")], keys(2))
    assert memory.requests == (EditRequest("a", "z", form="chat"),)


def test_a_removed_edit_is_gone_and_the_others_stay() -> None:
    memory = filled()
    removed = memory.remove(requests(5)[1].prompt)
    assert removed == requests(5)[1]
    kept = EditMemory(WIDTH)
    kept.write([r for i, r in enumerate(requests(5)) if i != 1], keys(5)[[0, 2, 3, 4]])
    assert_same(memory, kept)
    memory.write([removed], keys(5)[1:2])
    assert memory.request(4) == removed
    assert memory.nearest(keys(5)[1:2])[0].item() == 4


def test_removing_what_is_not_there_is_refused() -> None:
    with pytest.raises(EditorError, match=r"no edit of prompt 'Who\?' in this memory of 5 edits"):
        filled().remove("Who?")


def test_every_edit_needs_one_key_of_the_right_width() -> None:
    with pytest.raises(EditorError, match=r"2 edits need keys of shape \[2, 6\], got \[2, 5\]"):
        filled().write(requests(2), torch.zeros(2, 5))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_nearest_is_that_of_a_naive_search(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_CHUNK", chunk)
    memory, queries = filled(11), keys(4, seed=1)
    distances = torch.stack([torch.stack([(q - k).square().sum() for k in keys(11)]) for q in queries])
    index, distance = memory.nearest(queries)
    assert torch.equal(index, distances.argmin(dim=1))
    torch.testing.assert_close(distance, distances.min(dim=1).values)


def test_mixed_precision_does_not_blur_the_search() -> None:
    memory, near = EditMemory(WIDTH), 1 + 0.05 * keys(200)
    memory.write(requests(200), near)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        index, distance = memory.nearest(near)
    assert torch.equal(index, torch.arange(200))
    assert not distance.any()


def test_small_distances_keep_their_digits() -> None:
    memory = EditMemory(WIDTH)
    memory.write(requests(1), torch.full((1, WIDTH), 100.0))
    _, distance = memory.nearest(torch.full((1, WIDTH), 100.01))
    assert distance.item() == pytest.approx(WIDTH * 1e-4, rel=1e-2)


def test_an_empty_memory_has_no_nearest_edit() -> None:
    with pytest.raises(EditorError, match="empty memory"):
        EditMemory(WIDTH).nearest(keys(1))


def test_a_copy_is_independent() -> None:
    memory = filled()
    copy = memory.to("cpu")
    copy.remove(requests(5)[0].prompt)
    assert_same(memory, filled())


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    memory = filled()
    memory.write([EditRequest("Où est „Zürich“?", "à l'ouest")], keys(1, seed=3))
    memory.write([EditRequest("Where is Basel?", "in the north", "Basel", "place")], keys(1, seed=4))
    memory.save(tmp_path / "memory.safetensors", {"editor": "serac"})
    loaded, metadata = EditMemory.load(tmp_path / "memory.safetensors")
    assert_same(loaded, memory)
    assert metadata == {"editor": "serac"}


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read as a memory"):
        EditMemory.load(tmp_path / "nothing")
    save_file({"keys": keys(1)}, tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"not a hyperedit memory \(format None"):
        EditMemory.load(tmp_path / "other")


@pytest.mark.parametrize("edits", [[["a", "x"]], [["a", "x"], ["b"]], [["a", "x"], ["b", ""]], "ab", None], ids=repr)
def test_a_damaged_file_is_refused(edits: object, tmp_path: Path) -> None:
    header = {"format": "hyperedit-memory-1", "memory": json.dumps({"edits": edits, "metadata": {}})}
    save_file({"keys": keys(2)}, tmp_path / "memory", header)
    with pytest.raises(ArtifactError, match="is damaged"):
        EditMemory.load(tmp_path / "memory")
