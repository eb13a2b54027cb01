"""Hard negatives of a whole training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import EditRecord
from editors.common.errors import EditorError
from editors.methods.serac import mining
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.objective import SupervisedObjective
from editors.methods.serac.pairs import EditPairs
from editors.methods.serac.scope import scope_loss
from editors.methods.serac.texts import BaseTexts
from tests.editors.methods.serac.worlds import first_batch, new_editor
from tests.tiny_world import TinyWorld

# The more letters two of these have in common, the nearer they are.
FACTS = [
    EditRecord("aaaa", "x", rephrases=("zzzz",)),
    EditRecord("aaab", "x"),
    EditRecord("aabb", "x"),
    EditRecord("abbb", "x"),
]


def letters(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[float(text.lower().count(letter)) for letter in "abz"] for text in texts])


def prompts(mined: MinedNegatives, prompt: str) -> list[str]:
    return [edit.prompt for edit in mined.of(prompt)]


@pytest.mark.parametrize("together", [1, 3, 256])
def test_the_most_similar_prompts_come_first(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "_TOGETHER", together)
    mined = MinedNegatives(letters, FACTS, 2)
    assert prompts(mined, "aaaa") == ["aaab", "aabb"]
    assert prompts(mined, "abbb") == ["aabb", "aaab"]
    assert prompts(mined, "Aaaa ?") == ["aaab", "aabb"], "marks and case do not matter"
    assert prompts(mined, "nowhere") == []


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, False),
        ({"rephrases": ("zzzz",)}, True),
        ({"rephrases": ("AAAA?",)}, True),
        ({"subject": "b", "ground_truth": "one"}, False),
        ({"subject": "a", "ground_truth": "one"}, True),
        ({"subject": "a", "ground_truth": "two"}, False),
        ({"subject": "a", "relation": "r"}, True),
        ({"subject": "a", "relation": "s"}, False),
    ],
    ids=str,
)
def test_what_asks_for_the_same_is_no_negative(changed: dict[str, Any], same: bool) -> None:
    first = replace(FACTS[0], subject="a", ground_truth="one", relation="r")
    mined = MinedNegatives(letters, [first, replace(FACTS[1], **changed), *FACTS[2:]], 1)
    assert prompts(mined, "aaaa") == (["aabb"] if same else ["aaab"])


def test_sameness_is_passed_on() -> None:
    """The first and third fact share no text, but both share one with the second."""
    facts = [
        EditRecord("aaaa", "x", rephrases=("one",)),
        EditRecord("aaab", "x", rephrases=("one", "two")),
        EditRecord("aabb", "x", rephrases=("two",)),
        FACTS[3],
    ]
    assert prompts(MinedNegatives(letters, facts, 3), "aaaa") == ["abbb"]


def test_a_prompt_that_occurs_often_is_one() -> None:
    assert prompts(MinedNegatives(letters, [*FACTS, *FACTS], 9), "aaaa") == ["aaab", "aabb", "abbb"]


def test_they_are_out_of_scope_in_the_loss(tiny_world: TinyWorld) -> None:
    editor = new_editor(tiny_world, hard_negatives=0, mined_negatives=2, training={"c_edit": 0.0})
    batch = first_batch(tiny_world, editor)
    records = [EditRecord(f"Who founded {name}?", "x") for name in ("Beldor", "Kesnor", "Lummar")]
    edited = [request.prompt for request in batch.requests.requests]
    records += [EditRecord(prompt, "x") for prompt in edited]
    without = editor.episode_losses(batch).locality
    assert isinstance(editor.objective, SupervisedObjective)
    negatives = MinedNegatives(editor.network.published_encoder(), records, 2)
    editor.objective.mined = negatives
    found = editor.episode_losses(batch).locality
    pairs = EditPairs.of(editor.network.scope, BaseTexts(editor.tokenizer), batch)
    kinds, embed = pairs.by_kind(0), editor.network.scope.embed
    mined = [
        editor.network.scope.log_score((embed([query]) - embed([edit.prompt])).square().sum(1), [query], [edit])
        for query, own in zip(pairs.queries, edited, strict=False)
        for edit in negatives.of(own)
    ]
    assert len(mined) == 2 * batch.rephrase.num_texts
    wanted = scope_loss(kinds["paraphrase"], torch.cat([kinds["locality"], *mined]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found - without).abs() > 1e-3
    found.backward()
    assert all(parameter.grad is not None for parameter in editor.network.scope.parameters())


def test_training_mines_the_training_set(tiny_world: TinyWorld, tmp_path: Path) -> None:
    cli = tiny_world.run("fit", tmp_path / "runs", "--model.mined_negatives=1", "--trainer.max_steps=2", editor="serac")
    asked = {record.prompt for record in cli.datamodule.records["train"]}
    mined = cli.model.objective.mined
    found = {prompt: prompts(mined, prompt) for prompt in asked}
    assert all(set(others) < asked - {prompt} and len(others) == 1 for prompt, others in found.items())


def test_a_negative_number_is_refused(tiny_world: TinyWorld) -> None:
    with pytest.raises(EditorError, match="mined_negatives must be at least 0, got -1"):
        new_editor(tiny_world, mined_negatives=-1)
