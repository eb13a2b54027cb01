"""From records to episodes: which paraphrase and which locality texts go with an edit, and their tokens."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch.utils.data import Dataset

from datamodules.near import FAR, NearLocality, NearTexts
from datamodules.records import EditRecord, Probe
from datamodules.sampling import EpisodeNumbers
from datamodules.training_forms import TrainingForms
from editors.texts.batches import TokenBatch
from editors.texts.encoders import TextEncoder
from editors.texts.episodes import EditBatch, RequestBatch
from editors.texts.forms import Form, in_form
from editors.texts.requests import EditRequest

_Pairs = list[tuple[str, str]]
_LOG = logging.getLogger(__name__)
_LIMIT = "data.max_length"


class EpisodeCollator:
    """Encodes and pads the texts of a batch of episodes.

    Args:
        encoder: encodes texts for the base model.
        max_length: longest text in tokens.
    """

    def __init__(self, encoder: TextEncoder, max_length: int) -> None:
        self._encoder = encoder
        self._max_length = max_length
        self.tokenizer = encoder.tokenizer

    def __call__(self, pairs_by_episode: Sequence[_Pairs]) -> TokenBatch:
        """One token batch of all episodes' `(prompt, answer)` pairs."""
        episode = [e for e, pairs in enumerate(pairs_by_episode) for _ in pairs]
        flat = [pair for pairs in pairs_by_episode for pair in pairs]
        return self._encoder.batch(flat, episode, self._max_length, _LIMIT)

    def requests(self, episodes: Sequence[Sequence[EditRequest]]) -> RequestBatch:
        """The edit requests of all episodes, with their tokens."""
        return self._encoder.requests(episodes, self._max_length, _LIMIT)

    def faults(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """For each pair why it cannot be encoded; empty where it can."""
        return self._encoder.faults(pairs, self._max_length, _LIMIT)


class TrainingEpisodes(Dataset[EditBatch]):
    """Episodes for training. The random choices are a pure function of seed, epoch and record.

    Args:
        records: the training records.
        collate: encodes the texts.
        locality_pool: more locality questions; where a record has its own, either is taken with equal chance.
        locality_per_edit: locality texts for each edit.
        other_targets: share of edits that get another target than their record's: an answer of any other record or
            locality question. An editor must place any answer, and data sets have few. An answer is drawn in proportion
            to its length: long ones are the hardest to place, and the rarest.
        edit_prompt_as_rephrase: share of edits whose outer loss is on the edit prompt itself, not on a paraphrase.
        seed: seed of the choices.
        near: how often locality texts are near the edit; `None` for the record's own and the pool's only.
        forms: how often texts are written otherwise than in the data; `None` for never.
    """

    def __init__(
        self,
        records: Sequence[EditRecord],
        collate: EpisodeCollator,
        locality_pool: Sequence[Probe],
        *,
        locality_per_edit: int,
        other_targets: float,
        edit_prompt_as_rephrase: float,
        seed: int,
        near: NearLocality | None = None,
        forms: TrainingForms | None = None,
    ) -> None:
        self._records = records
        self._collate = collate
        self._pool = locality_pool
        self._locality_per_edit = locality_per_edit
        self._other_targets = other_targets
        self._edit_prompt_as_rephrase = edit_prompt_as_rephrase
        self._targets = self._fitting(_all_answers(records, locality_pool)) if other_targets else []
        self._target_lengths = list(accumulate(len(target) for target in self._targets))
        self._seed = seed
        self._near = None if near is None else NearTexts(records, near)
        self._forms = forms

    def __getitem__(self, numbers: EpisodeNumbers) -> EditBatch:
        """The batch of the given episodes of an epoch."""
        epoch, episodes = numbers
        requests: list[list[EditRequest]] = [[] for _ in episodes]
        rephrase: list[_Pairs] = [[] for _ in episodes]
        locality: list[_Pairs] = [[] for _ in episodes]
        for number, indices in enumerate(episodes):
            for index in indices:
                record = self._records[index]
                choose = random.Random(f"{self._seed}/{epoch}/{index}")
                other = choose.random() < self._other_targets
                target = self._other_target(choose) if other else record.target_new
                own = not record.rephrases or choose.random() < self._edit_prompt_as_rephrase
                paraphrase = (record.prompt if own else choose.choice(record.rephrases), target)
                unmoved = self._locality(record, target, choose)
                request = record.request(target)
                if self._forms is not None:
                    request = self._in_form(request, self._forms.of_request(self._collate.tokenizer, choose))
                requests[number].append(request)
                rephrase[number] += self._written([paraphrase], choose)
                locality[number] += self._written(unmoved, choose)
        return EditBatch(
            requests=self._collate.requests(requests),
            rephrase=self._collate(rephrase),
            locality=self._collate(locality),
        )

    def _other_target(self, choose: random.Random) -> str:
        return choose.choices(self._targets, cum_weights=self._target_lengths)[0]

    def _fitting(self, answers: list[str]) -> list[str]:
        """Those answers that every prompt has room for; the others would stop training when they are drawn."""
        prompts = [prompt for record in self._records for prompt in (record.prompt, *record.rephrases)]
        longest = max(prompts, key=len, default="")
        faults = self._collate.faults([(longest, answer) for answer in answers])
        fitting = [answer for answer, fault in zip(answers, faults, strict=True) if not fault]
        if len(fitting) < len(answers):
            left_out = len(answers) - len(fitting)
            _LOG.warning("%d of %d answers are too long to be other targets; left out.", left_out, len(answers))
        return fitting

    def _in_form(self, request: EditRequest, form: Form) -> EditRequest:
        """The request in this form, if it is not too long in it."""
        pair = (in_form(self._collate.tokenizer, request.prompt, form), request.target)
        return replace(request, form=form) if self._fits(pair) else request

    def _fits(self, pair: tuple[str, str]) -> bool:
        """Whether a text that no check has seen can be encoded: training must not end when it is drawn."""
        return not any(self._collate.faults([pair]))

    def _written(self, pairs: _Pairs, choose: random.Random) -> _Pairs:
        """The pairs with their prompts in some form, as they are where that is too long."""
        if self._forms is None:
            return pairs
        written = [(self._forms.text(self._collate.tokenizer, prompt, choose), answer) for prompt, answer in pairs]
        return [new if self._fits(new) else old for new, old in zip(written, pairs, strict=True)]

    def _locality(self, record: EditRecord, target: str, choose: random.Random) -> _Pairs:
        return [pair for _ in range(self._locality_per_edit) for pair in self._one_locality(record, target, choose)]

    def _one_locality(self, record: EditRecord, target: str, choose: random.Random) -> _Pairs:
        """One text near the edit, of the record, or of the pool; none where there is none."""
        if self._near is None:
            return self._far_locality(record, choose)
        kind = self._near.kind(choose)
        near = None if kind == FAR else self._near.text(kind, record, target, choose)
        if near is not None and self._fits(near):
            return [near]
        asks = record.prompt.endswith("?") and choose.random() < 0.5
        return [
            (f"{prompt}?" if asks and not prompt.endswith("?") else prompt, answer)
            for prompt, answer in self._far_locality(record, choose)
        ]

    def _far_locality(self, record: EditRecord, choose: random.Random) -> _Pairs:
        """One text of the record or of the pool; none where both are empty."""
        own = record.locality and (not self._pool or choose.random() < 0.5)
        source = record.locality if own else self._pool
        return _pairs([choose.choice(source)]) if source else []


class EvaluationEpisodes(Dataset[EditBatch]):
    """Episodes for validation and test: one edit each, with all its paraphrases and probes.

    Args:
        records: the records.
        collate: encodes the texts.
        slices: for each named part of the data, one boolean for each record.
    """

    def __init__(
        self, records: Sequence[EditRecord], collate: EpisodeCollator, slices: Mapping[str, Sequence[bool]]
    ) -> None:
        self._records = records
        self._collate = collate
        self._slices = slices

    def __getitem__(self, numbers: EpisodeNumbers) -> EditBatch:
        """The batch of the given episodes."""
        indices = [index for episode in numbers[1] for index in episode]
        records = [self._records[index] for index in indices]
        kinds = dict.fromkeys(kind for record in records for kind in record.portability)
        locality_kinds = dict.fromkeys(probe.kind for record in records for probe in record.locality if probe.kind)
        truths = [[(r.prompt, r.ground_truth)] if r.ground_truth else [] for r in records]
        return EditBatch(
            requests=self._collate.requests([[r.request()] for r in records]),
            rephrase=self._collate([[(text, r.target_new) for text in r.rephrases] for r in records]),
            locality=self._collate([_pairs(r.locality, "") for r in records]),
            locality_kinds={k: self._collate([_pairs(r.locality, k) for r in records]) for k in locality_kinds},
            portability={k: self._collate([_pairs(r.portability.get(k, ())) for r in records]) for k in kinds},
            ground_truth=self._collate(truths) if any(truths) else None,
            slices={k: torch.tensor([flags[i] for i in indices]) for k, flags in self._slices.items()},
        )


def _all_answers(records: Sequence[EditRecord], pool: Sequence[Probe]) -> list[str]:
    """Every distinct answer in the training data, in a fixed order."""
    answers = [answer for record in records for answer in (record.target_new, record.ground_truth) if answer]
    probes = [probe for record in records for probe in record.locality] + list(pool)
    return list(dict.fromkeys(answers + [probe.answer for probe in probes]))


def _pairs(probes: Sequence[Probe], kind: str | None = None) -> _Pairs:
    """The `(prompt, answer)` pairs of those `probes` that are of `kind`; `None` takes all."""
    return [(probe.prompt, probe.answer) for probe in probes if kind in (None, probe.kind)]
