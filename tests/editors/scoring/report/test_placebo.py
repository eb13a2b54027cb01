"""Tests of `editors.scoring.report.placebo`."""

from __future__ import annotations

import torch

from editors.scoring.report.placebo import random_update, update_norms, with_other_targets
from editors.texts.requests import EditRequest
from tests.tiny_models import random_edit


def test_a_random_update_has_the_norm_of_the_edit_in_every_layer() -> None:
    edit = random_edit({"one": (5, 7), "two": (6, 4)}, num_episodes=2)
    placebo = random_update(edit, seed=5)
    assert placebo is not None
    for site, update in edit.updates.items():
        for episode in range(2):
            found, wanted = (each.weight_delta(episode) for each in (placebo.updates[site], update))
            torch.testing.assert_close(found.norm(), wanted.norm())
            assert not torch.allclose(found, wanted)
            torch.testing.assert_close(update_norms(update)[episode], wanted.norm())


def test_every_request_gets_a_target_that_reads_otherwise() -> None:
    requests = [EditRequest(f"q{number}", target) for number, target in enumerate(("Osten", "the osten.", "Lume"))]
    shuffled = with_other_targets(requests, seed=0)
    assert shuffled is not None
    assert [request.target for request in shuffled[:2]] == ["Lume", "Lume"]
    assert [request.prompt for request in shuffled] == ["q0", "q1", "q2"]
    assert with_other_targets(requests[:2], seed=0) is None
