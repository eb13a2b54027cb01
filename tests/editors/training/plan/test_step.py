"""Tests of a traced step: every editor can be laid out, and what it takes grows with what it is given."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.families.encoder_decoder import EncoderDecoder
from editors.base_models.families.family import Family
from editors.base_models.loading import load_config
from editors.common.errors import EditorError
from editors.making.registry import registered_methods
from editors.training.learned import LearnedEditor
from editors.training.plan.memory_plan import MemoryPlan
from editors.training.plan.skeleton import BatchSize
from tests.tiny_world import BLOCKS, HIDDEN, MODELS, TinyWorld

FLOAT = 4
BATCH = BatchSize(episodes=4, edits=1, locality=2, tokens=10, answer_tokens=3)


def make(editor: str, world: TinyWorld) -> LearnedEditor:
    """The editor of the tiny world's configuration."""
    made: LearnedEditor = registered_methods()[editor].load_module()(**MODELS[editor](world.model)["init_args"])
    return made


@pytest.fixture(scope="module")
def plan_of(tiny_world: TinyWorld) -> Any:
    @cache
    def plan(editor: str, batch: BatchSize) -> MemoryPlan:
        made = make(editor, tiny_world)
        return MemoryPlan.of(made, load_config(made.base_model), batch)

    return plan


@pytest.mark.parametrize("editor", sorted(registered_methods()))
def test_sizes_are_those_of_the_real_editor(editor: str, tiny_world: TinyWorld, plan_of: Any) -> None:
    real = make(editor, tiny_world)
    real.configure_model()
    size = plan_of(editor, BATCH).size
    assert size.base_elements == sum(p.numel() for p in real.lm.model.parameters())
    assert size.network_elements == sum(p.numel() for p in real.network.parameters())
    assert size.trained == sum(p.nbytes for p in real.network.parameters() if p.requires_grad)
    assert size.network == size.network_elements * FLOAT + sum(b.nbytes for b in real.network.buffers())


@pytest.mark.parametrize("editor", sorted(registered_methods()))
def test_a_step_holds_its_gradients_and_grows_with_episodes_and_tokens(editor: str, plan_of: Any) -> None:
    small = plan_of(editor, BATCH)
    assert small.step.peak(1) >= small.size.trained
    assert small.step.peak(0) <= small.step.peak(1)
    more = plan_of(editor, BatchSize(8, 1, 2, 10, 3))
    longer = plan_of(editor, BatchSize(4, 1, 2, 20, 3))
    for larger in (more, longer):
        assert small.step.peak(0) < larger.step.peak(0) < 3 * small.step.peak(0)


def test_the_frozen_prefix_is_held_once(plan_of: Any) -> None:
    plan = plan_of("mend", BATCH)
    texts = BATCH.episodes * (1 + 1 + BATCH.locality)
    # The last answer token is not read.
    assert plan.step.parts["frozen prefix"] == texts * (BATCH.tokens - 1) * HIDDEN * FLOAT
    assert plan.prefix_depth == BLOCKS - 2


def test_zero3_gathers_the_prefix_once_and_edited_blocks_for_each_pass(plan_of: Any, tiny_world: TinyWorld) -> None:
    plan = plan_of("mend", BATCH)
    real = make("mend", tiny_world)
    real.configure_model()
    blocks = [sum(p.nbytes for p in block.parameters()) for block in real.lm.model.model.layers]
    edited, below, outside = sum(blocks[-2:]), sum(blocks[:-2]), plan.size.base_outside
    # Captured forward and backward, paraphrases with locality texts likewise, locality once without the edit: 5 times.
    # What is below the lowest site is not run backward: 3 times. Embeddings are also read for the prefix.
    assert below + 3 * edited + 3 * outside / 2 <= plan.step.base_read <= below + 5 * edited + 6 * outside
    assert plan.step.parts["edited passes"] > 0


def test_answers_that_end_are_planned_for(tiny_world: TinyWorld, plan_of: Any) -> None:
    """The token that ends an answer is one of its tokens; the base model's own tokenizer is not asked for it."""
    made = make("mend", tiny_world)
    made.base_model = replace(made.base_model, end_answers=True)
    ended = MemoryPlan.of(made, load_config(made.base_model), BATCH)
    assert ended.step.parts == plan_of("mend", BATCH).step.parts


def test_a_text_needs_room_for_prompt_and_answer() -> None:
    with pytest.raises(EditorError, match="less than tokens, got 5 and 5"):
        BatchSize(1, tokens=5, answer_tokens=5)


@pytest.mark.parametrize("family", [DecoderOnly, EncoderDecoder])
def test_a_batch_has_the_size_that_is_asked_for(family: type[Family]) -> None:
    batch = BATCH.batch(family)
    assert (batch.edit.num_texts, batch.rephrase.num_texts, batch.locality.num_texts) == (4, 4, 8)
    assert len(batch.locality.targets) == 8 * 3
    assert batch.locality.episode.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = torch.cat([part.input_ids for part in (batch.edit, batch.rephrase, batch.locality)]).tolist()
    assert len({tuple(row) for row in rows}) == 16
