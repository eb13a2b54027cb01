"""Which pairs of a batch are in scope, and which of the others are hard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from editors.methods.serac.pairs import EditPairs
from editors.methods.serac.scope import squared_distances
from editors.methods.serac.texts import BaseTexts
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import first_batch, new_editor
from tests.tiny_world import TinyWorld


class Minus:
    """A scope whose scores are minus the distances."""

    def log_score(self, squared_distance: Tensor, queries: list[str], requests: list[EditRequest]) -> Tensor:
        assert len(squared_distance) == len(queries) == len(requests)
        return -squared_distance


def pairs(distance: Tensor, num_rephrases: int, query_episode: list[int], edit_episode: list[int]) -> EditPairs:
    """Pairs with the given distances; no two texts are equal."""
    own = torch.tensor(query_episode).unsqueeze(1) == torch.tensor(edit_episode)
    own_edit = distance.masked_fill(~own, torch.inf).argmin(dim=1)
    requests = [EditRequest(f"prompt {i}", f"target {i}") for i in range(len(edit_episode))]
    queries = [f"query {i}" for i in range(len(query_episode))]
    scope: Any = Minus()
    same, embeddings = torch.zeros_like(own), torch.eye(len(queries))
    kinds = [*["paraphrase"] * num_rephrases, *["locality"] * (len(queries) - num_rephrases)]
    return EditPairs(scope, requests, queries, distance, kinds, own, own_edit, same, embeddings)


# Two paraphrases, then two locality texts, of three edits; the third is of an episode without texts.
DISTANCES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 9.0, 8.0], [10.0, 11.0, 12.0]])


def distances(kinds: dict[str, Tensor]) -> dict[str, list[float]]:
    return {kind: (-values).tolist() for kind, values in kinds.items()}


@pytest.mark.parametrize(("hard_negatives", "others"), [(0, []), (1, [2, 4, 8, 10]), (9, [2, 3, 4, 6, 8, 9, 10, 12])])
def test_pairs_are_own_texts_and_the_nearest_other_edits(hard_negatives: int, others: list[float]) -> None:
    found = distances(pairs(DISTANCES, 2, [0, 1, 0, 1], [0, 1, 2]).by_kind(hard_negatives))
    assert found == {"paraphrase": [1, 5], "locality": [7, 11], "other_edits": others}


def test_kinds_of_locality_texts_are_told_apart() -> None:
    batch = pairs(DISTANCES, 2, [0, 1, 0, 1], [0, 1, 2])
    batch.kinds = ["paraphrase", "paraphrase", "locality", "locality_Relation_Specificity"]
    found = distances(batch.by_kind(0))
    assert found == {
        "paraphrase": [1, 5],
        "locality": [7],
        "locality_Relation_Specificity": [11],
        "other_edits": [],
    }
    assert (-batch.own_scores()[1]).tolist() == [7, 11]


def test_other_edits_of_the_own_episode_are_no_pair() -> None:
    """Which of them a paraphrase belongs to is known by its similarity only."""
    batch = pairs(DISTANCES[:2], 2, [0, 1], [0, 0, 1])
    assert [request.prompt for request in batch.rephrase_requests()] == ["prompt 0", "prompt 2"]
    assert distances(batch.by_kind(1)) == {"paraphrase": [1, 6], "locality": [], "other_edits": [3, 4]}


def test_equal_prompts_are_no_pair_out_of_scope() -> None:
    batch = pairs(DISTANCES[:2], 2, [0, 1], [0, 1, 2])
    batch.same = torch.tensor([[True, False, True], [False, True, False]])
    assert distances(batch.by_kind(1))["other_edits"] == [2, 4]


def test_gradients_reach_the_scores_of_every_pair() -> None:
    distance = DISTANCES.clone().requires_grad_()
    batch = pairs(distance, 2, [0, 1, 0, 1], [0, 1, 2])
    torch.cat(list(batch.by_kind(1).values())).sum().backward()
    assert distance.grad is not None
    assert distance.grad.sum() == -8
    assert [request.prompt for request in batch.locality_requests()] == ["prompt 0", "prompt 1"]


def test_pairs_of_a_batch(tiny_world: TinyWorld) -> None:
    """The texts of a real batch: no pair of equal texts counts as out of scope."""
    editor = new_editor(tiny_world)
    network, batch = editor.network, first_batch(tiny_world, editor)
    found = EditPairs.of(network.scope, BaseTexts(editor.tokenizer), batch)
    queries = batch.rephrase.num_texts + batch.locality.num_texts
    assert found.squared_distance.shape == (queries, batch.edit.num_texts)
    assert found.num_rephrases == batch.rephrase.num_texts
    assert [r.prompt for r in found.rephrase_requests()] == [r.prompt for r in found.requests]
    keys = network.scope.embed([r.prompt for r in found.requests])
    texts = [text for part in (batch.rephrase, batch.locality) for text, _ in part.texts]
    torch.testing.assert_close(found.squared_distance, squared_distances(network.scope.embed(texts), keys))
    assert not found.same[: found.num_rephrases].all(dim=1).any()
