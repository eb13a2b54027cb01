"""The scope classifier: embeddings, scores, losses, threshold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from editors.common.errors import BaseModelError
from editors.methods.serac.scope import (
    CrossAttentionScope,
    Distance,
    EmbeddingScope,
    SentenceEncoder,
    SubjectScope,
    best_threshold,
    scope_loss,
    squared_distances,
)
from editors.methods.serac.subjects import mentioned
from editors.texts.requests import EditRequest
from tests.tiny_world import write_encoder

TEXTS = ("Who founded Beldor?", "What is spoken in Fengal?", "nq question: who lives in Jorkes by the sea")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def new_scope(folder: Path, distance: Distance = "squared", scale: float = 0.5) -> EmbeddingScope:
    return EmbeddingScope(SentenceEncoder(str(folder), normalise=distance == "cosine"), distance, scale)


def log_scores(scope: EmbeddingScope, queries: Tensor, keys: Tensor) -> Tensor:
    return scope.log_score(squared_distances(queries, keys), [], [])


def alone(encoder: SentenceEncoder, text: str, pooling: str) -> Tensor:
    """The embedding of one text, which needs no padding."""
    ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
    states = encoder.model(input_ids=ids).last_hidden_state[0]
    return states[0] if pooling == "first" else states.mean(dim=0)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_padding_does_not_matter(folder: Path, pooling: str) -> None:
    encoder = SentenceEncoder(str(folder), pooling=pooling, normalise=False)  # type: ignore[arg-type]
    embeddings = encoder(TEXTS)
    for embedding, text in zip(embeddings, TEXTS, strict=True):
        torch.testing.assert_close(embedding, alone(encoder, text, pooling), rtol=1e-5, atol=1e-5)
    assert encoder([]).shape == (0, encoder.width)


@torch.no_grad()
def test_a_long_text_is_cut(folder: Path) -> None:
    encoder = SentenceEncoder(str(folder), normalise=False)
    assert encoder(["founded " * 500]).isfinite().all()


def test_dropout_stays_off(folder: Path) -> None:
    scope = new_scope(folder).train()
    torch.testing.assert_close(scope.embed(TEXTS), scope.embed(TEXTS), rtol=0, atol=0)


@torch.no_grad()
def test_scores_are_those_of_the_equation(folder: Path) -> None:
    squared, cosine = new_scope(folder), new_scope(folder, "cosine", scale=3.0)
    plain = squared.encoder(TEXTS)
    for i in range(3):
        for j in range(3):
            distance = (plain[i] - plain[j]).square().sum()
            found = log_scores(squared, plain, plain)[i, j]
            torch.testing.assert_close(found, -0.5 * distance)
            similarity = functional.cosine_similarity(plain[i], plain[j], dim=0)
            unit = cosine.embed(TEXTS)
            found = log_scores(cosine, unit, unit)[i, j]
            torch.testing.assert_close(found, -3.0 * (1 - similarity), rtol=1e-4, atol=1e-5)


def test_everything_is_trained(folder: Path) -> None:
    scope = new_scope(folder)
    scores = log_scores(scope, scope.embed(TEXTS), scope.embed(TEXTS[:2]))
    in_scope = torch.eye(3, 2, dtype=torch.bool)
    scope_loss(scores[in_scope], scores[~in_scope]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scope.parameters())
    assert scope.log_scale.grad is not None
    assert scope.log_scale.grad.abs() > 0


def test_cross_attention_reads_both_texts(folder: Path) -> None:
    encoder, reader = (SentenceEncoder(str(folder), normalise=normalise) for normalise in (True, False))
    scope = CrossAttentionScope(encoder, reader)
    pairs = [(query, prompt) for query in TEXTS for prompt in TEXTS[:2]]
    queries = [query for query, _ in pairs]
    edits = [EditRequest(prompt, "x") for _, prompt in pairs]
    scores = scope.log_score(torch.zeros(len(pairs)), queries, edits)
    for score, (query, prompt) in zip(scores, pairs, strict=True):
        encoded = reader.tokenizer(prompt, query, return_tensors="pt")
        state = reader.model(**encoded).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(score, scope.head(state)[0, 0].sigmoid().log(), rtol=1e-4, atol=1e-5)
    scores.sum().backward()
    assert all((p.grad is None) == name.startswith("encoder.") for name, p in scope.named_parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scope.log_score(torch.zeros(len(pairs)), queries, edits), scores), "scores are in float32"


def test_the_subject_scope_weighs_wording_question_and_subject(folder: Path) -> None:
    scope = SubjectScope(SentenceEncoder(str(folder), normalise=True), 4.0)
    scope.log_scales.data = torch.tensor([3.0, 2.0, 1.0]).log()
    edit = EditRequest("Who founded Beldor?", "x", subject="Beldor")
    queries = ["Who founded beldor?", "Who founded Kesnor?", "Where is Beldor?"]
    embedded = scope.embed([*queries, edit.prompt])
    distance = (embedded[:-1] - embedded[-1]).square().sum(dim=1)
    asked = scope.embed(["Who founded it?", "Who founded Kesnor?", "Where is it?", "Who founded it?"])
    question = 0.5 * (asked[:-1] - asked[-1]).square().sum(dim=1)
    named = torch.tensor([mentioned(query, edit) for query in queries])
    assert named[0] == named[2] == 1 > named[1]
    found = scope.log_score(distance, queries, [edit] * 3)
    torch.testing.assert_close(found, -(1.5 * distance + 2 * question + 1 - named), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scope.parameters())


def test_without_a_subject_the_wording_counts(folder: Path) -> None:
    scope = SubjectScope(SentenceEncoder(str(folder), normalise=True), 4.0)
    edit = EditRequest("Who founded Beldor?", "x")
    assert scope.log_score(torch.zeros(1), [edit.prompt], [edit]) == 0
    distance = (scope.embed(["Where is it?"]) - scope.embed([edit.prompt])).square().sum(dim=1)
    torch.testing.assert_close(scope.log_score(distance, ["Where is it?"], [edit]), -(2 + 1) * distance)


def test_loss_is_the_binary_cross_entropy() -> None:
    inside, outside = torch.tensor([0.9, 0.2]), torch.tensor([0.6, 0.01, 0.3])
    expected = functional.binary_cross_entropy(inside, torch.ones(2))
    expected += functional.binary_cross_entropy(outside, torch.zeros(3))
    torch.testing.assert_close(scope_loss(inside.log(), outside.log()), expected)


def test_loss_of_equal_texts_out_of_scope_is_finite() -> None:
    log_score = torch.zeros(2, requires_grad=True)
    loss = scope_loss(torch.zeros(0), log_score)
    loss.backward()
    assert loss.isfinite()
    assert log_score.grad is not None
    assert log_score.grad.isfinite().all()


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 0.5),
        ([0.9, 0.3], [0.1, 0.2], 0.25),
        ([0.9, 0.8, 0.1], [0.2, 0.3], 0.55),
        ([1.0], [], 0.5),
        ([], [0.7], 0.5),
    ],
)
def test_threshold_separates_best(inside: list[float], outside: list[float], expected: float) -> None:
    assert best_threshold(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["./nowhere", "package:no_such_package_here/model"])
def test_a_missing_encoder_is_named(name: str) -> None:
    with pytest.raises(BaseModelError, match=name):
        SentenceEncoder(name, normalise=True)
