"""Metrics against numbers recorded from EasyEdit (commit 14cea82): token accuracy and locality agreement.

EasyEdit's `rewrite_acc`, `rephrase_acc` and `neighborhood_acc` are our `reliability/teacher_forced/token_accuracy`,
`generality/teacher_forced/token_accuracy` and `locality/teacher_forced/token_agreement`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from editors.lm.frozen import FrozenLM
from editors.scoring.metrics import agreement, teacher_forced
from editors.texts.batches import PaddingSide, TokenBatch, collate_texts, encode_answers
from tests.tiny_models import tiny_lm

STATES = ("pre", "post")


@dataclass
class Case:
    """The recorded models of one architecture, before and after an edit."""

    facts: dict[str, Any]
    models: dict[str, FrozenLM]
    tokenizer: PreTrainedTokenizerBase

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.facts["records"]

    def encode(self, pairs: Sequence[tuple[str, str]], side: PaddingSide = "left") -> TokenBatch:
        """The pairs as texts, each an episode of its own."""
        texts = encode_answers(self.tokenizer, pairs)
        return collate_texts(texts, range(len(texts)), self.facts["pad_token_id"], side)

    @torch.no_grad()
    def logits(self, state: str, tokens: TokenBatch) -> Tensor:
        return self.models[state].logits(tokens)

    @torch.no_grad()
    def logits_from_the_edge(self, state: str, tokens: TokenBatch) -> Tensor:
        """EasyEdit numbers padded texts from the left edge, padding included; GPT-2 embeds these numbers."""
        positions = torch.arange(tokens.input_ids.shape[1]).expand_as(tokens.input_ids)
        output = self.models[state].model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, position_ids=positions
        )
        return output.logits.flatten(0, 1)[tokens.positions]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request: pytest.FixtureRequest, golden: Path) -> Case:
    folder = golden / "metrics"
    facts = json.loads((folder / "case.json").read_text())["models"][request.param]
    models = {state: tiny_lm(AutoModelForCausalLM.from_pretrained(folder / facts[state])) for state in STATES}
    return Case(facts, models, AutoTokenizer.from_pretrained(folder / facts["pre"]))


def pairs(record: dict[str, Any], kind: str) -> list[tuple[str, str]]:
    """Prompts with answers of a record: "rewrite", "rephrase" or "locality"."""
    if kind == "locality":
        prompts, truths = record["locality_prompt"], record["locality_ground_truth"]
        return list(zip(prompts, truths, strict=True)) if isinstance(prompts, list) else [(prompts, truths)]
    return [(record["prompt" if kind == "rewrite" else "rephrase_prompt"], record["target_new"])]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["rewrite", "rephrase"])
def test_token_accuracy_of_single_texts(case: Case, state: str, kind: str) -> None:
    for record in case.records:
        tokens = case.encode(pairs(record, kind))
        accuracy, _ = teacher_forced(case.logits(state, tokens), tokens, tokens.num_texts)["token_accuracy"]
        assert accuracy.tolist() == pytest.approx(record["expected"][state][f"{kind}_acc"], abs=1e-6)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["rewrite", "rephrase"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_token_accuracy_of_a_padded_batch(case: Case, state: str, kind: str, side: PaddingSide) -> None:
    tokens = case.encode([pair for record in case.records for pair in pairs(record, kind)], side)
    accuracy, _ = teacher_forced(case.logits(state, tokens), tokens, tokens.num_texts)["token_accuracy"]
    # Not the recorded batch, but the recorded single texts: the padding must not matter. EasyEdit's does, for GPT-2.
    expected = [record["expected"][state][f"{kind}_acc"][0] for record in case.records]
    assert accuracy.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["rewrite", "rephrase"])
def test_token_accuracy_of_the_recorded_padded_batch(case: Case, state: str, kind: str) -> None:
    tokens = case.encode([pair for record in case.records for pair in pairs(record, kind)])
    logits = case.logits_from_the_edge(state, tokens)
    accuracy, _ = teacher_forced(logits, tokens, tokens.num_texts)["token_accuracy"]
    assert accuracy.tolist() == pytest.approx(case.facts["batched"][state][f"{kind}_acc"], abs=1e-6)


def test_locality_agreement(case: Case) -> None:
    """A record's locality prompts are one padded batch in EasyEdit."""
    for record in case.records:
        tokens = case.encode(pairs(record, "locality"))
        before, after = (case.logits_from_the_edge(state, tokens) for state in STATES)
        same, _ = agreement(before, after, tokens, tokens.num_texts)["token_agreement"]
        assert same.tolist() == pytest.approx(record["expected"]["post"]["neighborhood_acc"], abs=1e-6)
        for state, logits in (("pre", before), ("post", after)):
            said = [logits.argmax(-1)[tokens.rows == row].tolist() for row in range(tokens.num_texts)]
            assert said == record["expected"][state]["neighborhood_output"]


def test_locality_agreement_of_single_prompts_in_our_own_batch(case: Case) -> None:
    single = [record for record in case.records if isinstance(record["locality_prompt"], str)]
    tokens = case.encode([pair for record in single for pair in pairs(record, "locality")])
    before, after = (case.logits(state, tokens) for state in STATES)
    same, _ = agreement(before, after, tokens, tokens.num_texts)["token_agreement"]
    expected = [record["expected"]["post"]["neighborhood_acc"][0] for record in single]
    assert same.tolist() == pytest.approx(expected, abs=1e-6)


def test_means_over_records(case: Case) -> None:
    means = case.facts["mean"]
    for state in STATES:
        for kind in ("rewrite", "rephrase"):
            tokens = case.encode([pair for record in case.records for pair in pairs(record, kind)])
            accuracy, _ = teacher_forced(case.logits(state, tokens), tokens, tokens.num_texts)["token_accuracy"]
            assert accuracy.mean().item() == pytest.approx(means[f"{state}_{kind}_acc"], abs=1e-6)


def test_mean_agreement_counts_each_record_once(case: Case) -> None:
    """The last record has two locality prompts; EasyEdit and we average them first."""
    agreements = []
    for record in case.records:
        texts = encode_answers(case.tokenizer, pairs(record, "locality"))
        tokens = collate_texts(texts, [0] * len(texts), case.facts["pad_token_id"], "left")
        before, after = (case.logits_from_the_edge(state, tokens) for state in STATES)
        agreements.append(agreement(before, after, tokens, 1)["token_agreement"][0].item())
    assert sum(agreements) / len(agreements) == pytest.approx(case.facts["mean"]["neighborhood_acc"], abs=1e-6)
