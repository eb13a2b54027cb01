"""An applied memory against a plain model that is given the texts one by one, without padding or hooks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from editors.common.errors import EditorError
from editors.edits.low_rank import LowRankEdit
from editors.lm.frozen import FrozenLM
from editors.lm.generation import continue_greedily
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.edit import MemoryEdit, Routes, Routing
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.network import SERACNetwork
from editors.texts.batches import EncodedText, PaddingSide, collate_texts
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import Words, new_network
from tests.tiny_models import ARCHITECTURES, BOS_ID, PAD_ID, random_edit, tiny_model
from tests.tiny_world import write_encoder

WORDS = Words()
PROMPTS: tuple[tuple[int, ...], ...] = ((11, 12, 13, 14, 15), (21, 22, 23), (31, 32, 33, 34, 35, 36), (41, 42))
TARGETS: tuple[tuple[int, ...], ...] = ((51, 52), (61,), (71, 72), (81,))
# The first and third prompt are in memory.
EDITS = [EditRequest(WORDS.text(PROMPTS[i]), WORDS.text(TARGETS[i])) for i in (0, 2)]
CONTEXTS: tuple[tuple[int, ...], ...] = (PROMPTS[0] + TARGETS[0], (), PROMPTS[2] + TARGETS[2], ())
SIDES: tuple[PaddingSide, ...] = ("left", "right")


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


class World:
    """A base model, a network for it, and the same model with the adapter in its weights."""

    def __init__(self, architecture: str, encoder: Path) -> None:
        self.model = tiny_model(architecture)
        self.network = new_network(self.model, encoder, scale=40.0)
        self.counterfactual = copy.deepcopy(self.model)
        self.network.adapter.edit().select(1).merge(self.counterfactual)

    def edit(self, routing: Routing = "hard", requests: Sequence[EditRequest] = EDITS) -> MemoryEdit:
        edit = self.network.remember(requests, [0] * len(requests), 1)
        edit.routing = routing
        return edit

    def wanted(self, row: int, ids: Sequence[int], context: Sequence[int] | None = None) -> Tensor:
        """`[T, V]` logits of row `row`, which starts with its prompt, alone."""
        context = CONTEXTS[row] if context is None else context
        model = self.counterfactual if context else self.model
        return plain(model, [*context, *ids])[-len(ids) :]


@torch.no_grad()
def plain(model: PreTrainedModel, ids: Sequence[int], *, bos: bool = True) -> Tensor:
    """`[T, V]` logits after each of `ids`, which follow a beginning-of-text token."""
    logits: Tensor = model(torch.tensor([[BOS_ID, *ids] if bos else list(ids)])).logits[0]
    return logits[1:] if bos else logits


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, encoder: Path) -> World:
    return World(request.param, encoder)


@pytest.fixture(scope="module")
def llama(encoder: Path) -> World:
    return World("llama", encoder)


def padded(side: PaddingSide, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[Tensor, Tensor]:
    """Prompts with a beginning-of-text token as ids and mask."""
    width = max(map(len, prompts)) + 1
    ids = torch.full((len(prompts), width), PAD_ID)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt) - 1 if side == "left" else 0
        ids[row, start : start + len(prompt) + 1] = torch.tensor([BOS_ID, *prompt])
        mask[row, start : start + len(prompt) + 1] = 1
    return ids, mask


def forward(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        return model(**arguments, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits


def answers(side: PaddingSide) -> tuple[Any, list[EncodedText]]:
    texts = [
        EncodedText((BOS_ID, *p, *t), len(p) + 1, len(p) + len(t) + 1) for p, t in zip(PROMPTS, TARGETS, strict=True)
    ]
    return collate_texts(texts, [0] * len(texts), PAD_ID, side), texts


# --- hard routing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_texts_in_scope_are_read_after_their_edit_and_others_as_ever(world: World, side: PaddingSide) -> None:
    tokens, _ = answers(side)
    with torch.no_grad():
        found = FrozenLM(world.model, num_blocks=2).logits(tokens, world.edit())
    wanted = [
        world.wanted(row, [*p, *t])[len(p) - 1 : -1] for row, (p, t) in enumerate(zip(PROMPTS, TARGETS, strict=True))
    ]
    close(found, torch.cat(wanted))


@pytest.mark.parametrize("side", SIDES)
def test_a_direct_call_gives_logits_of_the_texts_own_columns(llama: World, side: PaddingSide) -> None:
    ids, mask = padded(side)
    with llama.edit().applied(llama.model):
        found = forward(llama.model, ids, mask)
    assert found.shape[:2] == ids.shape
    for row, prompt in enumerate(PROMPTS):
        close(found[row][mask[row].bool()][1:], llama.wanted(row, prompt))


def test_without_a_text_in_scope_nothing_is_computed_differently(world: World) -> None:
    ids, mask = padded("left", PROMPTS[1::2])
    before = forward(world.model, ids, mask)
    with world.edit().applied(world.model):
        assert torch.equal(forward(world.model, ids, mask), before)


def test_afterwards_the_model_is_as_before(llama: World) -> None:
    ids, mask = padded("left")
    before = forward(llama.model, ids, mask)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules())
    with llama.edit().applied(llama.model):
        assert not torch.equal(forward(llama.model, ids, mask), before)
    assert torch.equal(forward(llama.model, ids, mask), before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()) == hooks


def test_an_answer_does_not_change_the_route(llama: World) -> None:
    """Teacher forcing shows the model the answer; the scope classifier must not see it."""
    texts = [EncodedText((BOS_ID, *PROMPTS[0], *TARGETS[i]), 6, 6 + len(TARGETS[i])) for i in (0, 3)]
    edit, frozen = llama.edit(), FrozenLM(llama.model, num_blocks=2)
    for text in texts:
        tokens = collate_texts([text], [0], PAD_ID)
        found = frozen.logits(tokens, edit)
        close(found, llama.wanted(0, [*PROMPTS[0], *text.answer])[len(PROMPTS[0]) - 1 : -1])


def test_the_threshold_decides(llama: World) -> None:
    near = (*PROMPTS[0][:-1], 16)
    edit = llama.edit()
    score = edit.route([WORDS.text(near)], [0]).log_score.exp()
    ids, mask = padded("left", [near])
    for threshold, context in ((score * 0.9, CONTEXTS[0]), (score * 1.1, ())):
        llama.network.threshold.copy_(threshold)
        with edit.applied(llama.model):
            close(forward(llama.model, ids, mask)[0, 1:], llama.wanted(0, near, context))
    llama.network.threshold.fill_(0.5)


def test_cross_attention_decides_on_the_nearest_edit(llama: World, encoder: Path) -> None:
    network = new_network(llama.model, encoder, scope="cross_attention")
    prompts = [WORDS.text(prompt) for prompt in PROMPTS]
    edit = network.remember(EDITS, [0, 0], 1)
    routes = edit.route(prompts, [0] * 4)
    nearest = [request.prompt for request in routes.nearest if request is not None]
    assert nearest[0] == prompts[0]
    assert nearest[2] == prompts[2]
    torch.testing.assert_close(routes.log_score, network.scope.log_score(torch.zeros(4), prompts, nearest))


@torch.no_grad()
def test_the_adapter_computes_what_pefts_lora_does(llama: World) -> None:
    adapter = llama.network.adapter
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=3, lora_alpha=3, target_modules=adapter.sites))
    for site in adapter.sites:
        layer: Any = adapted.get_submodule(f"base_model.model.{site}")
        layer.lora_A["default"].weight.copy_(adapter.down[site.replace(".", "#")])
        layer.lora_B["default"].weight.copy_(adapter.up[site.replace(".", "#")].mT)
    tokens, _ = answers("right")
    found = FrozenLM(llama.model, num_blocks=2).logits(tokens, llama.edit())
    (ids,) = WORDS([EDITS[0].prompt + " " + EDITS[0].target])["input_ids"]
    wanted = adapted(torch.tensor([[*ids, *PROMPTS[0], *TARGETS[0]]])).logits[0, -len(TARGETS[0]) - 1 : -1]
    close(found[tokens.rows == 0], wanted)


# --- episodes --------------------------------------------------------------------------------------------------------


def test_each_text_is_looked_up_in_its_episodes_memory(llama: World) -> None:
    edit = llama.network.remember(EDITS, [0, 2], 3)
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


# --- generation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """Greedy continuation without padding and cache, past any end of text."""
    for _ in range(count):
        ids = [*ids, int(plain(model, ids, bos=False)[-1].argmax())]
    return ids[-count:]


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, count: int, beams: int = 1) -> list[list[int]]:
    output = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
        num_beams=beams, eos_token_id=None, pad_token_id=PAD_ID,
    )  # fmt: skip
    return [row[-count:] for row in output.tolist()]


def test_generation_with_a_cache_is_that_of_each_text_alone(world: World) -> None:
    ids, mask = padded("left")
    with world.edit().applied(world.model):
        found = generated(world.model, ids, mask, 5)
    for row, (prompt, context) in enumerate(zip(PROMPTS, CONTEXTS, strict=True)):
        model = world.counterfactual if context else world.model
        assert found[row] == greedy(model, [BOS_ID, *context, *prompt], 5)


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_a_prompt_is_routed_once_however_long_the_answer(
    llama: World, routing: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[str] = []
    real = MemoryEdit.route

    def noted(edit: MemoryEdit, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        routed.extend(prompts)
        return real(edit, prompts, episode)

    monkeypatch.setattr(MemoryEdit, "route", noted)
    with llama.edit(routing).applied(llama.model):
        generated(llama.model, *padded("left"), 5)
    assert routed == [WORDS.text(prompt) for prompt in PROMPTS]


def test_beam_search_is_that_of_each_text_alone(llama: World) -> None:
    with llama.edit().applied(llama.model):
        found = generated(llama.model, *padded("left"), 5, beams=3)
    for row, (prompt, context) in enumerate(zip(PROMPTS, CONTEXTS, strict=True)):
        model = llama.counterfactual if context else llama.model
        ids = torch.tensor([[BOS_ID, *context, *prompt]])
        assert found[row] == generated(model, ids, torch.ones_like(ids), 5, beams=3)[0]


def test_beam_search_with_soft_routing_is_refused(llama: World) -> None:
    refused = pytest.raises(EditorError, match=r"use greedy .* serac\.routing hard")
    with llama.edit("soft").applied(llama.model), refused:
        generated(llama.model, *padded("left"), 5, beams=2)


def test_one_block_serves_several_generations(llama: World) -> None:
    with llama.edit().applied(llama.model):
        for row in (0, 1, 2, 1):
            ids, mask = padded("left", [PROMPTS[row]])
            model = llama.counterfactual if CONTEXTS[row] else llama.model
            wanted = greedy(model, [BOS_ID, *CONTEXTS[row], *PROMPTS[row]], 4)
            assert generated(llama.model, ids, mask, 4) == [wanted]


def test_the_framework_generates_with_it(llama: World) -> None:
    tokens, _ = answers("right")
    (found,) = FrozenLM(llama.model, num_blocks=2).generate([tokens], llama.edit(), extra_tokens=2)
    ids, mask = padded("left")
    with llama.edit().applied(llama.model):
        wanted = continue_greedily(llama.model, ids, mask, 4)
    assert [row[:3] for row in found] == [row[:3] for row in wanted]


# --- soft routing ----------------------------------------------------------------------------------------------------


def soft_logits(world: World, edit: MemoryEdit, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """`[T, V]`: both models' probabilities for `ids` mixed by the score of `prompt`."""
    route = edit.route([WORDS.text(prompt)], [0])
    (request,) = route.nearest
    assert request is not None
    context = WORDS([f"{request.prompt} {request.target}"])["input_ids"][0][1:]
    base = world.wanted(0, ids, ())
    return mix(base, world.wanted(0, ids, context), route.log_score.expand(len(ids)))


@pytest.mark.parametrize("side", SIDES)
def test_soft_routing_mixes_the_probabilities(world: World, side: PaddingSide) -> None:
    edit = world.edit("soft")
    tokens, _ = answers(side)
    with torch.no_grad():
        found = FrozenLM(world.model, num_blocks=2).logits(tokens, edit)
    pairs = zip(PROMPTS, TARGETS, strict=True)
    wanted = [soft_logits(world, edit, p, [*p, *t])[len(p) - 1 : -1] for p, t in pairs]
    close(found, torch.cat(wanted))


def test_soft_generation_with_a_cache(llama: World) -> None:
    edit = llama.edit("soft")
    ids, mask = padded("left")
    with edit.applied(llama.model):
        found = generated(llama.model, ids, mask, 4)
    for row, prompt in enumerate(PROMPTS):
        so_far = list(prompt)
        for _ in range(4):
            so_far.append(int(soft_logits(llama, edit, prompt, so_far)[-1].argmax()))
        assert found[row] == so_far[-4:]


# --- together with other edits ---------------------------------------------------------------------------------------


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
        MemoryEdit.compose([one, llama.network.remember(EDITS, [0, 1], 2)])


def test_a_saved_memory_works_again(llama: World, tmp_path: Path) -> None:
    edit = llama.edit()
    edit.metadata = {"editor": "serac"}
    edit.save(tmp_path / "memory")
    memory, metadata = EditMemory.load(tmp_path / "memory")
    assert metadata == {"editor": "serac"}
    again = llama.network.remembering(memory)
    ids, mask = padded("left")
    with edit.applied(llama.model):
        wanted = forward(llama.model, ids, mask)
    with again.applied(llama.model):
        assert torch.equal(forward(llama.model, ids, mask), wanted)


def test_a_memory_of_another_encoder_is_refused(llama: World, tmp_path: Path) -> None:
    other = new_network(llama.model, write_encoder(tmp_path / "encoder", seed=1))
    with pytest.raises(EditorError, match="of another scope encoder"):
        other.remembering(llama.edit().memories[0])
    with pytest.raises(EditorError, match="of another scope encoder"):
        llama.network.remembering(EditMemory(3))
    assert len(llama.network.remembering(EditMemory(16)).memories[0]) == 0


def test_finite_episodes_are_told(llama: World) -> None:
    edit = llama.network.remember(EDITS, [0, 2], 3)
    edit.memories[2].keys[0, 0] = torch.nan
    assert edit.finite_episodes().tolist() == [True, True, False]


def test_an_empty_memory_changes_nothing(llama: World) -> None:
    ids, mask = padded("left")
    before = forward(llama.model, ids, mask)
    for routing in ("hard", "soft"):
        edit = MemoryEdit(llama.network, [EditMemory(llama.network.scope.encoder.width)], routing)
        with edit.applied(llama.model):
            assert torch.equal(forward(llama.model, ids, mask), before)


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_embeddings_cannot_be_routed(llama: World) -> None:
    with pytest.raises(EditorError, match="reads token ids"), llama.edit().applied(llama.model):
        llama.model(inputs_embeds=torch.zeros(1, 2, 32))


def test_a_text_that_is_too_long_with_its_edit_is_refused(llama: World) -> None:
    long = (*PROMPTS[0], *[17] * 55)
    request = EditRequest(WORDS.text(long), "ab")
    ids, mask = padded("left", [long])
    edit = llama.edit(requests=[request])
    refused = pytest.raises(EditorError, match=r"12\d tokens together; the base model reads at most 64")
    with refused, edit.applied(llama.model):
        forward(llama.model, ids, mask)


def test_texts_need_a_tokenizer(encoder: Path) -> None:
    network: SERACNetwork = new_network(tiny_model("llama"), encoder)
    network.tokenizer = None
    with pytest.raises(EditorError, match=r"set network\.tokenizer"):
        network.decode([[1]])


def test_a_low_rank_edit_is_told_from_a_memory() -> None:
    assert LowRankEdit({}).keeps_prefix
    assert not MemoryEdit(None, []).keeps_prefix  # type: ignore[arg-type]
