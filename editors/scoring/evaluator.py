"""`Evaluator`: scores a batch of edits before and after, under teacher forcing and in free generation.

Shape legend: E episodes, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.common.collectives import names_of_all
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.lm.losses import answer_nll, episode_means, locality_kl
from editors.making.protocol import EditMethod
from editors.scoring.metrics import MetricTable, agreement, generated_match, probability_success, teacher_forced
from editors.scoring.names import (
    EXACT_AGREEMENT,
    GENERALITY,
    GENERATED,
    LOCALITY,
    PORTABILITY,
    PROBABILITY_SUCCESS,
    RELIABILITY,
    TEACHER_FORCED,
    before_edit,
    metric_name,
    promise_of_kind,
)  # fmt: skip
from editors.scoring.passes import ProbePasses, Run, continuations
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch

_Values = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the training losses in `loss/total`, by which a trained editor's checkpoints are chosen.

    Args:
        edit: of the edit loss.
        locality: of the locality loss.
    """

    edit: float
    locality: float


class Evaluator:
    """Scores the edits of a method: made, then tested before and after. The one scorer; it knows no Trainer.

    Args:
        lm: the base model.
        method: makes the edits.
        loss_weights: of `loss/total`, for a method that is trained; `None` for no such number.
    """

    def __init__(self, lm: FrozenLM, method: EditMethod, loss_weights: LossWeights | None = None) -> None:
        self._lm, self._method, self._loss_weights = lm, method, loss_weights
        self._table = MetricTable()

    def compute(self, device: torch.device) -> dict[str, float]:
        """The means by name of all batches since the last call. Collective."""
        scores = self._table.compute(device)
        self._table.reset()
        return scores

    def update(self, batch: EditBatch, *, generate: bool) -> None:
        """Make the batch's edits and add their scores to the means.

        Args:
            batch: E episodes.
            generate: also score free generation.
        """
        values = self.scores(batch, generate=generate)
        if not batch.counted:
            return
        for name, (value, present) in values.items():
            self._table.update(name, value, present)
            for part, member in batch.slices.items():
                self._table.update(f"{part}/{name}", value, present & member)

    def scores(self, batch: EditBatch, edit: Edit | None = None, *, generate: bool) -> dict[str, _Values]:
        """The scores of each episode.

        Args:
            batch: E episodes.
            edit: score this edit in place of one that the method makes; of E episodes, or of one, which all texts get.
            generate: also score free generation.

        Returns:
            For each metric its values `[E]`, and `[E]` booleans: has the episode one?
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            return self._scores(batch.outside_inference_mode(), edit, generate=generate)

    def _scores(self, batch: EditBatch, edit: Edit | None, *, generate: bool) -> dict[str, _Values]:
        lm, count = self._lm, batch.num_episodes
        own = {name: lm.texts.scored(tokens) for name, tokens in _probes(batch).items()}
        # Where processes share the base model, each runs the passes of all; its edit texts stand in for what it lacks.
        names = names_of_all(own) if lm.is_sharded else list(own)
        probes = {name: own.get(name, own[RELIABILITY]) for name in names}
        passes = ProbePasses(lm, probes, keep=generate)
        if edit is None:
            edit = self._method.make(lm, batch.requests.with_prefix(passes.hidden[RELIABILITY]))
        base = passes.run(None)
        edited = passes.run(edit, base)
        before, after = ({name: run.logits[name] for name in own} for run in (base, edited))
        values = _forced_scores(own, before, after, count)
        values |= _losses(own, before, after, count, self._loss_weights)
        if generate:
            probes.pop("ground_truth", None)
            values |= _generated_scores(lm, probes, own, base, edited, count)
        return values


def _probes(batch: EditBatch) -> dict[str, TokenBatch]:
    """The batch's texts by promise; parts without a text are left out."""
    parts = {RELIABILITY: batch.edit, GENERALITY: batch.rephrase, LOCALITY: batch.locality}
    parts |= {promise_of_kind(LOCALITY, kind): tokens for kind, tokens in batch.locality_kinds.items()}
    parts |= {promise_of_kind(PORTABILITY, kind): tokens for kind, tokens in batch.portability.items()}
    if batch.ground_truth is not None:
        parts["ground_truth"] = batch.ground_truth
    return {name: tokens for name, tokens in parts.items() if tokens.num_texts}


def _forced_scores(
    probes: dict[str, TokenBatch], base: dict[str, Tensor], edited: dict[str, Tensor], count: int
) -> dict[str, _Values]:
    """Teacher-forced measures of every promise, before and after the edit."""
    values: dict[str, _Values] = {}
    for name, tokens in probes.items():
        if name == "ground_truth":
            for named, logits in ((before_edit, base), (str, edited)):
                values[named(metric_name(RELIABILITY, TEACHER_FORCED, PROBABILITY_SUCCESS))] = probability_success(
                    logits[RELIABILITY], probes[RELIABILITY], logits[name], tokens, count
                )
            continue
        for named, logits in ((before_edit, base), (str, edited)):
            for measure, value in teacher_forced(logits[name], tokens, count).items():
                values[named(metric_name(name, TEACHER_FORCED, measure))] = value
        if name.startswith(LOCALITY):
            for measure, value in agreement(base[name], edited[name], tokens, count).items():
                values[metric_name(name, TEACHER_FORCED, measure)] = value
    return values


def _losses(
    probes: dict[str, TokenBatch],
    base: dict[str, Tensor],
    edited: dict[str, Tensor],
    count: int,
    weights: LossWeights | None,
) -> dict[str, _Values]:
    """The training losses on held-out edits, for each episode; as in training, a missing paraphrase is the edit prompt.

    Where there is no locality text the total is that of the edit loss, so that it can be monitored for any data set.
    """
    edit, has_edit = _edit_losses(probes[RELIABILITY], edited[RELIABILITY], count)
    if GENERALITY in edited:
        rephrased, has_rephrase = _edit_losses(probes[GENERALITY], edited[GENERALITY], count)
        edit = torch.where(has_rephrase, rephrased, edit)
    values = {"loss/edit": (edit, has_edit)}
    if LOCALITY in edited:
        divergence = locality_kl(base[LOCALITY], edited[LOCALITY])
        values["loss/locality_kl"] = episode_means(divergence, probes[LOCALITY].answer_episode(), count)
    if weights is None:
        return values
    total = weights.edit * edit
    if "loss/locality_kl" in values:
        total = total + weights.locality * values["loss/locality_kl"][0]
    return {**values, "loss/total": (total, has_edit)}


def _edit_losses(tokens: TokenBatch, logits: Tensor, count: int) -> _Values:
    return episode_means(answer_nll(logits, tokens.targets), tokens.answer_episode(), count)


def _generated_scores(
    lm: FrozenLM, probes: dict[str, TokenBatch], own: Collection[str], base: Run, edited: Run, count: int
) -> dict[str, _Values]:
    """Free-generation measures of every promise that is `own`, before and after the edit; all `probes` are run."""
    befores = continuations(lm, probes, base)
    afters = continuations(lm, probes, edited, befores)
    values: dict[str, _Values] = {}
    for (name, tokens), before, after in zip(probes.items(), befores, afters, strict=True):
        if name not in own:
            continue
        # An encoder-decoder model's answer ends with the end-of-text token.
        answers = lm.tokenizer.batch_decode(tokens.answer_ids(), skip_special_tokens=True)
        for named, texts in ((before_edit, before), (str, after)):
            for measure, value in generated_match(texts, answers, tokens.episode, count).items():
                values[named(metric_name(name, GENERATED, measure))] = value
        if name.startswith(LOCALITY):
            agrees = [float(old == new) for old, new in zip(before, after, strict=True)]
            same = torch.tensor(agrees, device=tokens.episode.device)
            values[metric_name(name, GENERATED, EXACT_AGREEMENT)] = episode_means(same, tokens.episode, count)
    return values
