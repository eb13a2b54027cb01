"""A memory whose counterfactual model is the adapter, against a plain model with the adapter in its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from editors.common.errors import EditorError
from editors.texts.batches import PaddingSide
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.words_world import (
    CONTEXTS,
    EDITS,
    PROMPTS,
    SIDES,
    TARGETS,
    WORDS,
    World,
    answers,
    close,
    forward,
    generated,
    greedy,
    padded,
    soft_logits,
)
from tests.tiny_models import BOS_ID, tiny_lm, tiny_model


@pytest.mark.parametrize("side", SIDES)
def test_texts_in_scope_are_read_after_their_edit_and_others_as_ever(world: World, side: PaddingSide) -> None:
    tokens, _ = answers(side)
    with torch.no_grad():
        found = tiny_lm(world.model, num_blocks=2).logits(tokens, world.edit())
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


@torch.no_grad()
def test_the_adapter_computes_what_pefts_lora_does(llama: World) -> None:
    adapter = llama.network.adapter
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=3, lora_alpha=3, target_modules=adapter.sites))
    for site in adapter.sites:
        layer: Any = adapted.get_submodule(f"base_model.model.{site}")
        layer.lora_A["default"].weight.copy_(adapter.down[site.replace(".", "#")])
        layer.lora_B["default"].weight.copy_(adapter.up[site.replace(".", "#")].mT)
    tokens, _ = answers("right")
    found = tiny_lm(llama.model, num_blocks=2).logits(tokens, llama.edit())
    (ids,) = WORDS([EDITS[0].prompt + " " + EDITS[0].target])["input_ids"]
    wanted = adapted(torch.tensor([[*ids, *PROMPTS[0], *TARGETS[0]]])).logits[0, -len(TARGETS[0]) - 1 : -1]
    close(found[tokens.rows == 0], wanted)


def test_generation_with_a_cache_is_that_of_each_text_alone(world: World) -> None:
    ids, mask = padded("left")
    with world.edit().applied(world.model):
        found = generated(world.model, ids, mask, 5)
    for row, (prompt, context) in enumerate(zip(PROMPTS, CONTEXTS, strict=True)):
        model = world.counterfactual if context else world.model
        assert found[row] == greedy(model, [BOS_ID, *context, *prompt], 5)


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


@pytest.mark.parametrize("side", SIDES)
def test_soft_routing_mixes_the_probabilities(world: World, side: PaddingSide) -> None:
    edit = world.edit("soft")
    tokens, _ = answers(side)
    with torch.no_grad():
        found = tiny_lm(world.model, num_blocks=2).logits(tokens, edit)
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


def test_a_text_that_is_too_long_with_its_edit_is_refused(llama: World) -> None:
    long = (*PROMPTS[0], *[17] * 55)
    request = EditRequest(WORDS.text(long), "ab")
    ids, mask = padded("left", [long])
    edit = llama.edit(requests=[request])
    refused = pytest.raises(EditorError, match=r"12\d tokens together; the base model reads at most 64")
    with refused, edit.applied(llama.model):
        forward(llama.model, ids, mask)
