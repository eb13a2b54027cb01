"""When a prompt is routed, and what the hooks leave alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from editors.common.errors import EditorError
from editors.lm.generation import continue_greedily
from editors.methods.serac.routing import Router, Routes, Routing
from editors.texts.batches import EncodedText, collate_texts
from tests.editors.methods.serac.words_world import (
    CONTEXTS,
    PROMPTS,
    TARGETS,
    WORDS,
    World,
    answers,
    close,
    forward,
    generated,
    greedy,
    padded,
)
from tests.tiny_models import BOS_ID, PAD_ID, tiny_lm


def test_without_a_text_in_scope_nothing_is_computed_differently(world: World) -> None:
    ids, mask = padded("left", PROMPTS[1::2])
    before = forward(world.model, ids, mask)
    with world.edit().applied(world.model):
        assert torch.equal(forward(world.model, ids, mask), before)


def test_an_answer_does_not_change_the_route(llama: World) -> None:
    """Teacher forcing shows the model the answer; the scope classifier must not see it."""
    texts = [EncodedText((BOS_ID, *PROMPTS[0], *TARGETS[i]), 6, 6 + len(TARGETS[i])) for i in (0, 3)]
    edit, lm = llama.edit(), tiny_lm(llama.model, num_blocks=2)
    for text in texts:
        tokens = collate_texts([text], [0], PAD_ID)
        found = lm.logits(tokens, edit)
        close(found, llama.wanted(0, [*PROMPTS[0], *text.answer])[len(PROMPTS[0]) - 1 : -1])


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_a_prompt_is_routed_once_however_long_the_answer(
    llama: World, routing: Routing, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed: list[str] = []
    real = Router.route

    def noted(router: Router, prompts: Sequence[str], episode: Sequence[int]) -> Routes:
        routed.extend(prompts)
        return real(router, prompts, episode)

    monkeypatch.setattr(Router, "route", noted)
    with llama.edit(routing).applied(llama.model):
        generated(llama.model, *padded("left"), 5)
    assert routed == [WORDS.text(prompt) for prompt in PROMPTS]


def test_one_block_serves_several_generations(llama: World) -> None:
    with llama.edit().applied(llama.model):
        for row in (0, 1, 2, 1):
            ids, mask = padded("left", [PROMPTS[row]])
            model = llama.counterfactual if CONTEXTS[row] else llama.model
            wanted = greedy(model, [BOS_ID, *CONTEXTS[row], *PROMPTS[row]], 4)
            assert generated(llama.model, ids, mask, 4) == [wanted]


def test_the_framework_generates_with_it(llama: World) -> None:
    tokens, _ = answers("right")
    (found,) = tiny_lm(llama.model, num_blocks=2).generate([tokens], llama.edit(), extra_tokens=2)
    ids, mask = padded("left")
    with llama.edit().applied(llama.model):
        wanted = continue_greedily(llama.model, ids, mask, 4)
    assert [row[:3] for row in found] == [row[:3] for row in wanted]


def test_embeddings_cannot_be_routed(llama: World) -> None:
    with pytest.raises(EditorError, match="reads token ids"), llama.edit().applied(llama.model):
        llama.model(inputs_embeds=torch.zeros(1, 2, 32))
