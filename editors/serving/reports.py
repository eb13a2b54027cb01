"""Report cards of exported editors on the rows of a file: a bad row never takes others with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from editors.artifacts.editor import LoadedEditor
from editors.base_models.loading import longest_text
from editors.common.errors import DataError, EditorError
from editors.lm.frozen import FrozenLM
from editors.making.registry import registered_method
from editors.scoring.report.abilities import Tasks
from editors.scoring.report.card import ReportCard
from editors.scoring.report.cases import ReportCase
from editors.scoring.report.making import Progress, make_report
from editors.texts.forms import in_form
from editors.texts.request_files import BadRow, RequestRow

Rows = Sequence[RequestRow | BadRow]


def require_usable(rows: Rows, name: str) -> None:
    """Check that there is anything to report on.

    Args:
        rows: what a file holds.
        name: of the file.

    Raises:
        DataError: no row can be used.
    """
    if not any(isinstance(row, RequestRow) for row in rows):
        reason = next((f"; row {row.number}: {row.error}" for row in rows if isinstance(row, BadRow)), "")
        raise DataError(f"{name} holds no edit request that can be used{reason}")


def report_on_rows(
    lm: FrozenLM,
    editor: LoadedEditor,
    rows: Rows,
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    tasks: Tasks | None = None,
    together: Sequence[int] = (),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReportCard:
    """The card of an editor on those rows whose edits it can make; it names the others.

    Args:
        lm: the base model, as `editor.freeze` gives it.
        editor: the exported editor.
        rows: of a file; other arguments and errors are those of `make_report`.
        texts: as there.
        tasks: as there.
        together: as there.
        batch_size: as there.
        seed: as there.
        progress: as there.
    """
    checked = [_checked(lm, editor, row) for row in rows]
    require_usable(checked, "the data")
    card = make_report(
        lm,
        editor.network,
        [_case(row) for row in checked if isinstance(row, RequestRow)],
        texts=texts,
        tasks=tasks,
        together=together,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    bad = tuple({"row": row.number, "error": row.error} for row in checked if isinstance(row, BadRow))
    return replace(card, method=editor.config.editor, bad=bad)


def _checked(lm: FrozenLM, editor: LoadedEditor, row: RequestRow | BadRow) -> RequestRow | BadRow:
    """The row, or why its edit cannot be made. Other texts for which there is no room are left out of the report."""
    if isinstance(row, BadRow):
        return row
    request = row.request
    try:
        registered_method(editor.config.editor).require_answerable([request])
        pair = (in_form(lm.tokenizer, request.prompt, request.form), request.target)
    except EditorError as error:
        return BadRow(row.number, str(error))
    (fault,) = lm.texts.faults([pair], longest_text(lm.model))
    return BadRow(row.number, fault) if fault else row


def _case(row: RequestRow) -> ReportCase:
    return ReportCase(row.request, row.rephrases, row.locality, row.near, row.portability)
