"""`MemoryEdit` as an object: applied, undone, composed, saved, beside other edits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.routing import Routing
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.words_world import EDITS, PROMPTS, WORDS, World, close, forward, new_network, padded
from tests.editors.methods.serac.worlds import remembered, routed
from tests.tiny_models import random_edit


def test_afterwards_the_model_is_as_before(llama: World) -> None:
    ids, mask = padded("left")
    before = forward(llama.model, ids, mask)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules())
    with llama.edit().applied(llama.model):
        assert not torch.equal(forward(llama.model, ids, mask), before)
    assert torch.equal(forward(llama.model, ids, mask), before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()) == hooks


def test_each_text_is_looked_up_in_its_episodes_memory(llama: World) -> None:
    edit = llama.remember(EDITS, [0, 2], 3)
    ids, mask = padded("right", [PROMPTS[0], PROMPTS[0], PROMPTS[2]])
    with edit.applied(llama.model, torch.tensor([0, 1, 2])):
        found = forward(llama.model, ids, mask)
    close(found[0, 1:6], llama.wanted(0, PROMPTS[0]))
    close(found[1, 1:6], llama.wanted(0, PROMPTS[0], ()))
    close(found[2, 1:], llama.wanted(2, PROMPTS[2]))
    alone = edit.select(2)
    assert alone.memories[0].requests == (EDITS[1],)
    with pytest.raises(EditorError, match="3 episodes; say which one each text gets"), edit.applied(llama.model):
        pass
    with pytest.raises(EditorError, match="3 episodes; select"):
        edit.save("nowhere")


@pytest.mark.parametrize("routing", ["hard", "soft"])
@pytest.mark.parametrize("order", [0, 1])
def test_it_works_beside_a_low_rank_edit_of_each_text(llama: World, routing: Routing, order: int) -> None:
    """Both models get the low-rank edit: it is a change of the base model."""
    ids, mask = padded("left", PROMPTS[:2])
    other = random_edit({"model.layers.1.mlp.down_proj": (48, 32)}, num_episodes=2)
    # One episode for both texts of the memory, one each for the other edit.
    blocks = [llama.edit(routing).applied(llama.model), other.applied(llama.model, torch.tensor([0, 1]))]
    with blocks[order], blocks[1 - order]:
        found = forward(llama.model, ids, mask)
    for row in range(2):
        with other.select(row).applied(llama.model), llama.edit(routing).applied(llama.model):
            alone = forward(llama.model, *padded("left", [PROMPTS[row]]))
        close(found[row][mask[row].bool()], alone[0])
        with llama.edit(routing).applied(llama.model):
            without = forward(llama.model, *padded("left", [PROMPTS[row]]))
        assert (alone - without).abs().max() > 1e-3


def test_sequential_edits_accumulate(llama: World) -> None:
    one, two = (llama.edit(requests=[request]) for request in EDITS)
    one.metadata, two.metadata = {"number": 1}, {"number": 2}
    both = MemoryEdit.compose([one, two])
    assert both.memories[0].requests == tuple(EDITS)
    assert both.metadata == {"parts": [{"number": 1}, {"number": 2}]}
    assert len(one.memories[0]) == 1
    newer = llama.edit(requests=[EditRequest(EDITS[0].prompt, WORDS.text((82,)))])
    assert MemoryEdit.compose([both, newer]).memories[0].request(0).target == WORDS.text((82,))
    with pytest.raises(EditorError, match="at least one"):
        MemoryEdit.compose([])
    with pytest.raises(EditorError, match=r"equal numbers of episodes compose, got \[1, 2\]"):
        MemoryEdit.compose([one, llama.remember(EDITS, [0, 1], 2)])


def test_memories_of_different_editors_do_not_compose(llama: World, encoder: Path) -> None:
    """Of one editor are edits that two calls have made; the tokenizer of each call may be another object."""
    other = remembered(new_network(llama.model, encoder), EDITS, [0, 0], 1, WORDS)
    with pytest.raises(EditorError, match="only memories of one editor"):
        MemoryEdit.compose([llama.edit(), other])
    again = remembered(llama.network, EDITS[1:], [0], 1, type(WORDS)())
    assert MemoryEdit.compose([llama.edit(requests=EDITS[:1]), again]).memories[0].requests == tuple(EDITS)


def test_a_saved_memory_works_again(llama: World, tmp_path: Path) -> None:
    edit = llama.edit()
    edit.metadata = {"editor": "serac"}
    edit.save(tmp_path / "memory")
    memory, metadata = EditMemory.load(tmp_path / "memory")
    assert metadata == {"editor": "serac"}
    again = llama.network.remembering(memory, WORDS)
    ids, mask = padded("left")
    with edit.applied(llama.model):
        wanted = forward(llama.model, ids, mask)
    with again.applied(llama.model):
        assert torch.equal(forward(llama.model, ids, mask), wanted)


def test_finite_episodes_are_told(llama: World) -> None:
    edit = llama.remember(EDITS, [0, 2], 3)
    edit.memories[2].keys[0, 0] = torch.nan
    assert edit.finite_episodes().tolist() == [True, True, False]


def test_an_empty_memory_changes_nothing(llama: World) -> None:
    ids, mask = padded("left")
    before = forward(llama.model, ids, mask)
    routings: tuple[Routing, ...] = ("hard", "soft")
    for routing in routings:
        edit = routed(llama.network.using([EditMemory(llama.network.scope.encoder.width)], WORDS), routing)
        with edit.applied(llama.model):
            assert torch.equal(forward(llama.model, ids, mask), before)


def test_a_low_rank_edit_is_told_from_a_memory(llama: World) -> None:
    assert LowRankEdit({}).keeps_prefix
    assert not llama.edit().keeps_prefix
