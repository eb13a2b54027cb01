"""Which prompts are in scope, and of which edit."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.editors.methods.serac.words_world import (
    CONTEXTS,
    EDITS,
    PROMPTS,
    WORDS,
    World,
    close,
    forward,
    new_network,
    padded,
)
from tests.editors.methods.serac.worlds import remembered, routed


def test_the_threshold_decides(llama: World) -> None:
    near = (*PROMPTS[0][:-1], 16)
    edit = llama.edit()
    score = edit.router.route([WORDS.text(near)], [0]).log_score.exp()
    ids, mask = padded("left", [near])
    for threshold, context in ((score * 0.9, CONTEXTS[0]), (score * 1.1, ())):
        llama.network.threshold.copy_(threshold)
        with edit.applied(llama.model):
            close(forward(llama.model, ids, mask)[0, 1:], llama.wanted(0, near, context))
    llama.network.threshold.fill_(0.5)


def test_cross_attention_decides_on_the_nearest_edit(llama: World, encoder: Path) -> None:
    network = new_network(llama.model, encoder, scope="cross_attention")
    prompts = [WORDS.text(prompt) for prompt in PROMPTS]
    edit = remembered(network, EDITS, [0, 0], 1, WORDS)
    routes = edit.router.route(prompts, [0] * 4)
    nearest = [request for request in routes.nearest if request is not None]
    assert nearest[0].prompt == prompts[0]
    assert nearest[2].prompt == prompts[2]
    torch.testing.assert_close(routes.log_score, network.scope.log_score(torch.zeros(4), prompts, nearest))


def test_the_nearest_edit_of_each_prompts_episode_is_found(llama: World) -> None:
    router = llama.remember(EDITS, [0, 2], 3).router
    first, third = (request.prompt for request in EDITS)
    routes = router.route([first, first, first, third], [0, 1, 2, 2])
    assert routes.nearest == [EDITS[0], None, EDITS[1], EDITS[1]]
    assert routes.log_score[1] == -torch.inf
    assert router.in_scope(routes).tolist() == [True, False, False, True]


def test_soft_routing_has_every_prompt_in_scope_that_has_an_edit(llama: World) -> None:
    soft = routed(llama.remember(EDITS[:1], [0], 2), "soft").router
    prompts = [EDITS[0].prompt, EDITS[1].prompt, EDITS[0].prompt]
    assert soft.in_scope(soft.route(prompts, [0, 0, 1])).tolist() == [True, True, False]
