"""Many independent edits: made in batches, scored before and after, a bad row never taking others with it.

Shape legend: E rows of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from editors.artifacts.editor import LoadedEditor
from editors.base_models.loading import longest_text
from editors.common.errors import EditorError
from editors.edits.protocol import NOT_FINITE, Edit
from editors.scoring import names
from editors.scoring.evaluator import Evaluator
from editors.scoring.names import before_edit, metric_name
from editors.texts.batches import TokenBatch
from editors.texts.episodes import EditBatch
from editors.texts.request_files import BadRow, RequestRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RELIABILITY = metric_name(names.RELIABILITY, names.TEACHER_FORCED, names.EXACT_MATCH)
GENERALITY = metric_name(names.GENERALITY, names.TEACHER_FORCED, names.EXACT_MATCH)
LOCALITY = metric_name(names.LOCALITY, names.TEACHER_FORCED, names.EXACT_AGREEMENT)
SHOWN = (RELIABILITY, before_edit(RELIABILITY), GENERALITY, before_edit(GENERALITY), LOCALITY)


@dataclass(frozen=True)
class DoneRow:
    """A row whose edit was made.

    Args:
        number: its place in the file.
        edit: its edit, of one episode.
        scores: by name; before the edit under `before/`. What has no text to test has no score.
        seconds: its share of the time that making the edits of its batch took, without scoring.
    """

    number: int
    edit: Edit
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class BatchEditor:
    """Makes and scores independent edits.

    Args:
        editor: the trained editor.
        model: its base model; stays frozen.
        tokenizer: of the base model.
        batch_size: how many edits are made and scored together, at most.
    """

    def __init__(
        self, editor: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16
    ) -> None:
        if batch_size < 1:
            raise EditorError(f"the batch size must be at least 1, got {batch_size}")
        editor.check_base_model(model)
        self._editor, self._batch_size = editor, batch_size
        self._lm = editor.freeze(model, tokenizer)
        self._evaluator = Evaluator(self._lm, editor.network)
        self._limit = longest_text(model)

    def run(self, rows: Iterable[RequestRow | BadRow]) -> Iterator[DoneRow | BadRow]:
        """Each row done, or what is wrong with it; in the order of `rows`."""
        waiting: list[RequestRow | BadRow] = []
        for row in rows:
            waiting.append(row)
            if sum(isinstance(each, RequestRow) for each in waiting) == self._batch_size:
                yield from self._flush(waiting)
                waiting = []
        yield from self._flush(waiting)

    def _flush(self, rows: Sequence[RequestRow | BadRow]) -> list[DoneRow | BadRow]:
        """A batch of rows, those that cannot be encoded sorted out first."""
        checked = [self._checked(row) if isinstance(row, RequestRow) else row for row in rows]
        good = [row for row in checked if isinstance(row, RequestRow)]
        results = {result.number: result for result in self._tried(good)} if good else {}
        return [results[row.number] if isinstance(row, RequestRow) else row for row in checked]

    def _checked(self, row: RequestRow) -> RequestRow | BadRow:
        try:
            texts = row.texts(self._lm.tokenizer)
        except EditorError as error:  # in chat form, and the model has no chat template
            return BadRow(row.number, str(error))
        faults = [fault for fault in self._lm.texts.faults(texts, self._limit) if fault]
        return BadRow(row.number, faults[0]) if faults else row

    def _tried(self, rows: Sequence[RequestRow]) -> list[DoneRow | BadRow]:
        """`_edited`; where a row is refused only then (with its memory's entry it is too long, say), it goes alone."""
        try:
            return self._edited(rows)
        except EditorError as error:
            if len(rows) == 1:
                return [BadRow(rows[0].number, str(error))]
            return [result for row in rows for result in self._tried([row])]

    @torch.no_grad()
    def _edited(self, rows: Sequence[RequestRow]) -> list[DoneRow | BadRow]:
        """Make and score the edits of rows that can be read."""
        start = time.perf_counter()
        edit = self._editor.make(self._lm, [[row.request] for row in rows])
        seconds = (time.perf_counter() - start) / len(rows)
        finite = edit.finite_episodes()
        scores = self._scores(rows, edit)
        return [
            DoneRow(row.number, edit.select(number).to("cpu"), scores[number], seconds)
            if finite[number]
            else BadRow(row.number, NOT_FINITE)
            for number, row in enumerate(rows)
        ]

    def _scores(self, rows: Sequence[RequestRow], edit: Edit) -> list[dict[str, float]]:
        """For each row its scores."""
        values = self._evaluator.scores(self._batch(rows), edit, generate=False)
        shown = {name: values[name] for name in SHOWN if name in values}
        return [
            {name: float(value[row]) for name, (value, present) in shown.items() if present[row]}
            for row in range(len(rows))
        ]

    def _batch(self, rows: Sequence[RequestRow]) -> EditBatch:
        """The rows as episodes."""
        return EditBatch(
            self._lm.read([[row.request] for row in rows]),
            self._tokens([row.rephrased(self._lm.tokenizer) for row in rows]),
            self._tokens([row.asked(self._lm.tokenizer) for row in rows]),
        )

    def _tokens(self, pairs: Sequence[Sequence[tuple[str, str]]]) -> TokenBatch:
        """The texts of all rows, each with its row as its episode."""
        owner = [number for number, row in enumerate(pairs) for _ in row]
        batch = self._lm.texts.batch([pair for row in pairs for pair in row], owner, self._limit)
        return batch.to(self._lm.model.device)
