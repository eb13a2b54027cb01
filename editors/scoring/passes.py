"""The base model's passes over all texts of an evaluation, before and after an edit, and what it goes on to say.

Shape legend: B texts, N answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.lm.generation import Continuation, Ending
from editors.lm.kv_cache import KVCache
from editors.texts.batches import TokenBatch

# Free generation may run this many tokens past the answer's length before it is cut: enough to see where it stops.
EXTRA_TOKENS = 4


@dataclass
class Run:
    """The model's passes over all probes, with an edit or without.

    Args:
        edit: the edit.
        logits: `[N, V]` by probe.
        continuations: by probe what generation can go on from; `None` if it has to start from the prompts.
        changed: by probe `[B]` booleans, which texts were run; the others have the base model's logits and answers.
            `None`: all of them.
    """

    edit: Edit | None
    logits: dict[str, Tensor]
    continuations: dict[str, Continuation] | None
    changed: dict[str, Tensor] | None = None


class ProbePasses:
    """Passes over all probes that share the frozen prefix.

    Args:
        lm: the base model.
        probes: the texts.
        keep: keep keys and values for generation.
    """

    def __init__(self, lm: FrozenLM, probes: dict[str, TokenBatch], *, keep: bool) -> None:
        self._lm, self._probes = lm, probes
        keep = keep and lm.can_continue_from_kv_cache
        self._below = {name: KVCache() for name in probes} if keep else None
        hidden = lm.prefix(list(probes.values()), None if self._below is None else list(self._below.values()))
        self.hidden = dict(zip(probes, hidden, strict=True))

    def run(self, edit: Edit | None, base: Run | None = None) -> Run:
        """The blocks above the prefix and the head; all blocks, and nothing kept, if the edit changes those below.

        Args:
            edit: run with this edit.
            base: what was run without it, for texts that it cannot change.
        """
        # The processes of a sharded model have to run equally many passes, whatever each edit changes.
        if edit is not None and not edit.keeps_prefix and base is not None and not self._lm.is_sharded:
            return self._run_changed(edit, base)
        if self._below is None or not (edit is None or edit.keeps_prefix):
            logits = {n: self._lm.logits(t, edit, self.hidden[n]) for n, t in self._probes.items()}
            return Run(edit, logits, None)
        caches = {name: below.branch() for name, below in self._below.items()}
        logits = {n: self._lm.logits(t, edit, self.hidden[n], caches[n]) for n, t in self._probes.items()}
        return Run(edit, logits, {n: Continuation(logits[n].argmax(dim=-1), caches[n]) for n in logits})

    def _run_changed(self, edit: Edit, base: Run) -> Run:
        """All blocks for the texts that the edit may change."""
        changed = {name: edit.may_change(tokens) for name, tokens in self._probes.items()}
        logits = {}
        for name, tokens in self._probes.items():
            logits[name] = base.logits[name].clone()
            if changed[name].any():
                logits[name][changed[name][tokens.rows]] = self._lm.logits(tokens.select(changed[name]), edit)
        return Run(edit, logits, None, changed)


def continuations(
    lm: FrozenLM,
    probes: dict[str, TokenBatch],
    run: Run,
    befores: Sequence[list[str]] = (),
    ending: Ending | None = None,
) -> list[list[str]]:
    """What the model says after each prompt, greedily, a few tokens past the answer's length; for each batch.

    Args:
        lm: the base model.
        probes: the texts.
        run: the passes over them.
        befores: what it said without the edit, for texts that the run has left out.
        ending: where answers end, in place of that length.
    """
    starts = None if run.continuations is None else [run.continuations[name] for name in probes]
    if run.changed is None:
        generated = lm.generate(list(probes.values()), run.edit, EXTRA_TOKENS, starts, ending)
        return [lm.tokenizer.batch_decode(texts, skip_special_tokens=True) for texts in generated]
    chosen = [tokens.select(run.changed[name]) for name, tokens in probes.items()]
    texts = []
    for name, before, ids in zip(
        probes, befores, lm.generate(chosen, run.edit, EXTRA_TOKENS, None, ending), strict=True
    ):
        new = iter(lm.tokenizer.batch_decode(ids, skip_special_tokens=True))
        changed = run.changed[name].tolist()
        texts.append([next(new) if own else old for own, old in zip(changed, before, strict=True)])
    return texts
