"""`Evaluator`: scores a batch of edits before and after, under teacher forcing and in free generation.

Shape legend: E episodes, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from editors.common.collectives import names_of_all
from editors.edits.low_rank import Edit
from editors.lm.generation import Begun
from editors.lm.kv_cache import KeyValues, goes_on_behind_keys
from editors.lm.losses import answer_nll, episode_means, locality_kl
from editors.scoring.metrics import MetricTable, agreement, generated_match, probability_success, teacher_forced
from editors.texts.batches import EditBatch, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from editors.lm.frozen import FrozenLM
    from editors.texts.encoders import TextEncoder

# Free generation may run this many tokens past the answer's length before it is cut: enough to see where it stops.
EXTRA_TOKENS = 4

_Values = tuple[Tensor, Tensor]


class Editing(Protocol):
    """What the evaluator asks of an editor."""

    frozen: FrozenLM
    c_edit: float
    c_loc: float

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's."""

    @property
    def text_encoder(self) -> TextEncoder:
        """Of the base model's texts."""

    def compute_edit(self, batch: TokenBatch, num_episodes: int, hidden: Tensor | None) -> tuple[Edit, Tensor]:
        """As `Editor.compute_edit`."""


class Evaluator:
    """Collects the metrics of one evaluation epoch.

    Args:
        generate_in_validation: whether validation, too, scores free generation.
    """

    def __init__(self, *, generate_in_validation: bool) -> None:
        self.generate_in_validation = generate_in_validation
        self._table = MetricTable()

    def compute(self, device: torch.device) -> dict[str, float]:
        """The epoch's means by name; starts a new epoch."""
        scores = self._table.compute(device)
        self._table.reset()
        return scores

    def update(self, editor: Editing, batch: EditBatch, *, generate: bool) -> None:
        """Make the batch's edits and score them."""
        with torch.inference_mode(mode=False), torch.no_grad():
            self._update(editor, batch.outside_inference_mode(), generate=generate)

    def _update(self, editor: Editing, batch: EditBatch, *, generate: bool) -> None:
        own = {name: editor.text_encoder.scored(tokens) for name, tokens in _probes(batch).items()}
        # Where processes share the base model, each runs the passes of all; its edit texts stand in for what it lacks.
        names = names_of_all(own) if editor.frozen.is_shared else list(own)
        probes = {name: own.get(name, own["reliability"]) for name in names}
        passes = _Passes(editor.frozen, probes, keep=generate)
        edit, _ = editor.compute_edit(batch.edit, batch.num_episodes, passes.hidden["reliability"])
        base = passes.run(None)
        edited = passes.run(edit, base)
        before, after = ({name: run.logits[name] for name in own} for run in (base, edited))
        values = _forced_scores(own, before, after, batch.num_episodes)
        values |= _losses(editor, own, before, after, batch.num_episodes)
        if generate:
            probes.pop("ground_truth", None)
            values |= _generated_scores(editor, probes, own, base, edited, batch.num_episodes)
        if not batch.counted:
            return
        for name, (value, present) in values.items():
            self._table.update(name, value, present)
            for part, member in batch.slices.items():
                self._table.update(f"{part}/{name}", value, present & member)


@dataclass
class _Run:
    """The model's passes over all probes, with an edit or without.

    Args:
        edit: the edit.
        logits: `[N, V]` by probe.
        begun: by probe what generation can go on from; `None` if it has to start from the prompts.
        changed: by probe `[B]` booleans, which texts were run; the others have the base model's logits and answers.
            `None`: all of them.
    """

    edit: Edit | None
    logits: dict[str, Tensor]
    begun: dict[str, Begun] | None
    changed: dict[str, Tensor] | None = None


class _Passes:
    """Passes over all probes that share the frozen prefix.

    Args:
        frozen: the base model.
        probes: the texts.
        keep: keep keys and values for generation.
    """

    def __init__(self, frozen: FrozenLM, probes: dict[str, TokenBatch], *, keep: bool) -> None:
        self._frozen, self._probes = frozen, probes
        keep = keep and goes_on_behind_keys(frozen.model)
        self._kept = {name: KeyValues() for name in probes} if keep else None
        hidden = frozen.prefix(list(probes.values()), None if self._kept is None else list(self._kept.values()))
        if self._kept and frozen.prefix_depth and not all(below.parts for below in self._kept.values()):
            self._kept = None  # those of this model cannot be kept
        self.hidden = dict(zip(probes, hidden, strict=True))

    def run(self, edit: Edit | None, base: _Run | None = None) -> _Run:
        """The blocks above the prefix and the head; all blocks, and nothing kept, if the edit changes those below.

        Args:
            edit: run with this edit.
            base: what was run without it, for texts that it cannot change.
        """
        # Processes that share the model have to run equally many passes, whatever each edit changes.
        if edit is not None and not edit.keeps_prefix and base is not None and not self._frozen.is_shared:
            return self._run_changed(edit, base)
        if self._kept is None or not (edit is None or edit.keeps_prefix):
            logits = {n: self._frozen.logits(t, edit, self.hidden[n]) for n, t in self._probes.items()}
            return _Run(edit, logits, None)
        kept = {name: below.branch() for name, below in self._kept.items()}
        logits = {n: self._frozen.logits(t, edit, self.hidden[n], kept[n]) for n, t in self._probes.items()}
        parts = 1 + bool(self._frozen.prefix_depth)
        if not all(len(own.parts) and all(len(row) == parts for row in own.parts.values()) for own in kept.values()):
            return _Run(edit, logits, None)  # keys of this model cannot be kept
        return _Run(edit, logits, {n: Begun(logits[n].argmax(dim=-1), kept[n]) for n in logits})

    def _run_changed(self, edit: Edit, base: _Run) -> _Run:
        """All blocks for the texts that the edit may change."""
        changed = {name: edit.may_change(tokens) for name, tokens in self._probes.items()}
        logits = {}
        for name, tokens in self._probes.items():
            logits[name] = base.logits[name].clone()
            if changed[name].any():
                logits[name][changed[name][tokens.rows]] = self._frozen.logits(tokens.select(changed[name]), edit)
        return _Run(edit, logits, None, changed)


def _probes(batch: EditBatch) -> dict[str, TokenBatch]:
    """The batch's texts by promise; parts without a text are left out."""
    parts = {"reliability": batch.edit, "generality": batch.rephrase, "locality": batch.locality}
    parts |= {f"locality_{kind}": tokens for kind, tokens in batch.locality_kinds.items()}
    parts |= {f"portability_{kind}": tokens for kind, tokens in batch.portability.items()}
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
            for prefix, logits in (("before/", base), ("", edited)):
                values[f"{prefix}reliability/teacher_forced/probability_success"] = probability_success(
                    logits["reliability"], probes["reliability"], logits[name], tokens, count
                )
            continue
        for prefix, logits in (("before/", base), ("", edited)):
            for measure, value in teacher_forced(logits[name], tokens, count).items():
                values[f"{prefix}{name}/teacher_forced/{measure}"] = value
        if name.startswith("locality"):
            for measure, value in agreement(base[name], edited[name], tokens, count).items():
                values[f"{name}/teacher_forced/{measure}"] = value
    return values


def _losses(
    editor: Editing, probes: dict[str, TokenBatch], base: dict[str, Tensor], edited: dict[str, Tensor], count: int
) -> dict[str, _Values]:
    """The training losses on held-out edits, for each episode; as in training, a missing paraphrase is the edit prompt.

    Where there is no locality text the total is that of the edit loss, so that it can be monitored for any data set.
    """
    edit, has_edit = _edit_losses(probes["reliability"], edited["reliability"], count)
    if "generality" in edited:
        rephrased, has_rephrase = _edit_losses(probes["generality"], edited["generality"], count)
        edit = torch.where(has_rephrase, rephrased, edit)
    values = {"loss/edit": (edit, has_edit)}
    total = editor.c_edit * edit
    if "locality" in edited:
        divergence = locality_kl(base["locality"], edited["locality"])
        values["loss/locality_kl"] = episode_means(divergence, probes["locality"].answer_episode(), count)
        total = total + editor.c_loc * values["loss/locality_kl"][0]
    return {**values, "loss/total": (total, has_edit)}


def _edit_losses(tokens: TokenBatch, logits: Tensor, count: int) -> _Values:
    return episode_means(answer_nll(logits, tokens.targets), tokens.answer_episode(), count)


def _generated_scores(
    editor: Editing, probes: dict[str, TokenBatch], own: Collection[str], base: _Run, edited: _Run, count: int
) -> dict[str, _Values]:
    """Free-generation measures of every promise that is `own`, before and after the edit; all `probes` are run."""
    befores = _continuations(editor.frozen, editor.tokenizer, probes, base)
    afters = _continuations(editor.frozen, editor.tokenizer, probes, edited, befores)
    values: dict[str, _Values] = {}
    for (name, tokens), before, after in zip(probes.items(), befores, afters, strict=True):
        if name not in own:
            continue
        # An encoder-decoder model's answer ends with the end-of-text token.
        answers = editor.tokenizer.batch_decode(tokens.answer_ids(), skip_special_tokens=True)
        for prefix, texts in (("before/", before), ("", after)):
            for measure, value in generated_match(texts, answers, tokens.episode, count).items():
                values[f"{prefix}{name}/generated/{measure}"] = value
        if name.startswith("locality"):
            agrees = [float(old == new) for old, new in zip(before, after, strict=True)]
            same = torch.tensor(agrees, device=tokens.episode.device)
            values[f"{name}/generated/exact_agreement"] = episode_means(same, tokens.episode, count)
    return values


def _continuations(
    frozen: FrozenLM,
    tokenizer: PreTrainedTokenizerBase,
    probes: dict[str, TokenBatch],
    run: _Run,
    befores: Sequence[list[str]] = (),
) -> list[list[str]]:
    """What the model says after each prompt, greedily, a few tokens past the answer's length; for each batch.

    Args:
        frozen: the base model.
        tokenizer: its tokenizer.
        probes: the texts.
        run: the passes over them.
        befores: what it said without the edit, for texts that the run has left out.
    """
    begun = None if run.begun is None else [run.begun[name] for name in probes]
    if run.changed is None:
        generated = frozen.generate(list(probes.values()), run.edit, EXTRA_TOKENS, begun)
        return [tokenizer.batch_decode(texts, skip_special_tokens=True) for texts in generated]
    chosen = [tokens.select(run.changed[name]) for name, tokens in probes.items()]
    texts = []
    for name, before, ids in zip(probes, befores, frozen.generate(chosen, run.edit, EXTRA_TOKENS), strict=True):
        new = iter(tokenizer.batch_decode(ids, skip_special_tokens=True))
        changed = run.changed[name].tolist()
        texts.append([next(new) if own else old for own, old in zip(changed, before, strict=True)])
    return texts
