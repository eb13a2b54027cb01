"""Edit requests from JSON and JSONL files, row by row: a bad row says what is wrong with it and stops nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editors.common.errors import DataError, EditorError
from editors.texts.requests import EditRequest, require_unicode


@dataclass(frozen=True)
class RequestRow:
    """One row of a file.

    Args:
        number: its place in the file, from 1: the line of a JSONL file, the entry of a JSON list.
        request: the edit.
        rephrases: other wordings of the prompt, to test whether they give the new answer too.
        locality: questions with answers, to test whether the model still says the same.
    """

    number: int
    request: EditRequest
    rephrases: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()

    def texts(self) -> list[tuple[str, str]]:
        """Every pair of prompt and answer that the model has to read."""
        target = self.request.target
        return [(self.request.prompt, target), *((text, target) for text in self.rephrases), *self.locality]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        number: its place in the file, from 1.
        error: what is wrong with it.
    """

    number: int
    error: str


def read_request_rows(path: str | Path) -> Iterator[RequestRow | BadRow]:
    """The rows of a `.jsonl` file, or of a JSON file with a list.

    A row is an object with `prompt` and `target` (or `target_new`), and optionally `subject` and `relation` (texts),
    `rephrases` (texts) and `locality` (objects with `prompt` and `answer`). Other fields are ignored.

    Raises:
        DataError: the file cannot be read, or is no list.
    """
    path = Path(path)
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _row_of_line(number, line)
            return
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of requests; a file with one request in each line must end in .jsonl")
    for number, values in enumerate(rows, start=1):
        yield _row(number, values)


def _row_of_line(number: int, line: bytes) -> RequestRow | BadRow:
    try:
        return _row(number, json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        return BadRow(number, f"no JSON: {error}")


def _row(number: int, values: Any) -> RequestRow | BadRow:
    try:
        if not isinstance(values, dict):
            raise DataError(f"a request is an object with prompt and target, got {type(values).__name__}")
        target = values.get("target", values.get("target_new"))
        request = EditRequest(values.get("prompt"), target, values.get("subject"), values.get("relation"))  # type: ignore[arg-type]
        rephrases = tuple(_text(text, "rephrases") for text in _list(values, "rephrases"))
        locality = tuple(_question(question) for question in _list(values, "locality"))
    except EditorError as error:
        return BadRow(number, str(error))
    return RequestRow(number, request, rephrases, locality)


def _list(values: dict[str, Any], name: str) -> list[Any]:
    found = values.get(name) or []
    if not isinstance(found, list):
        raise DataError(f"{name} must be a list, got {type(found).__name__}")
    return found


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} must hold non-empty texts, got {value!r:.60}")
    require_unicode(value, name)
    return value


def _question(value: Any) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"locality must hold objects with prompt and answer, got {type(value).__name__}")
    return _text(value.get("prompt"), "prompt of locality"), _text(value.get("answer"), "answer of locality")
