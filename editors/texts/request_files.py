"""Edit requests from JSON and JSONL files, row by row: a bad row says what is wrong with it and stops nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editors.common.errors import DataError, EditorError
from editors.texts.forms import in_form
from editors.texts.requests import EditRequest, require_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# The kind of near and portability texts that name none.
_OTHER = "other"


@dataclass(frozen=True)
class RequestRow:
    """One row of a file.

    Args:
        number: its place in the file, from 1: the line of a JSONL file, the entry of a JSON list.
        request: the edit.
        rephrases: other wordings of the prompt, to test whether they give the new answer too. They and the locality
            questions are asked in the request's form.
        locality: questions with answers, to test whether the model still says the same.
        near: such questions near the edit, by kind; where the answer is not known it is empty. For report cards.
        portability: questions whose answers follow from the edit, by kind. For report cards.
    """

    number: int
    request: EditRequest
    rephrases: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()
    near: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    portability: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def rephrased(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """The rephrases as the model of `tokenizer` reads them, each with the target.

        Raises:
            EditorError: the request is in chat form, and the model has no chat template.
        """
        return self._in_form(tokenizer, [(text, self.request.target) for text in self.rephrases])

    def asked(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """The locality questions as the model reads them, each with its answer; errors as `rephrased`."""
        return self._in_form(tokenizer, self.locality)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """Every pair of prompt and answer that the model has to read; errors as `rephrased`."""
        edit = self._in_form(tokenizer, [(self.request.prompt, self.request.target)])
        return [*edit, *self.rephrased(tokenizer), *self.asked(tokenizer)]

    def _in_form(self, tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(in_form(tokenizer, prompt, self.request.form), answer) for prompt, answer in pairs]


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
    `form` (bare or chat), `rephrases` (texts), `locality` (objects with `prompt` and `answer`), and `near` and
    `portability` (such objects, each with its `kind` if it has one; in `near` the answer may be missing). Other fields
    are ignored.

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
        form = "bare" if values.get("form") is None else values["form"]
        request = EditRequest(values.get("prompt"), target, values.get("subject"), values.get("relation"), form)  # type: ignore[arg-type]
        rephrases = tuple(_text(text, "rephrases") for text in _list(values, "rephrases"))
        locality = tuple(_question(question, "locality") for question in _list(values, "locality"))
        near, portability = (_kinds(values, name) for name in ("near", "portability"))
    except EditorError as error:
        return BadRow(number, str(error))
    return RequestRow(number, request, rephrases, locality, near, portability)


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


def _question(value: Any, name: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"{name} must hold objects with prompt and answer, got {type(value).__name__}")
    answer = value.get("answer")
    known = name != "near" or answer not in (None, "")
    return _text(value.get("prompt"), f"prompt of {name}"), _text(answer, f"answer of {name}") if known else ""


def _kinds(values: dict[str, Any], name: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """The questions of a list by their kinds."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for value in _list(values, name):
        question = _question(value, name)
        found[_text(value.get("kind") or _OTHER, f"kind of {name}")].append(question)
    return {kind: tuple(questions) for kind, questions in found.items()}
