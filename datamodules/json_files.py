"""JSON and JSONL data files: loading them row by row, and typed access to the fields of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editors.common.errors import DataError, EditorError
from editors.texts.json_documents import parsed, read_file, shown
from editors.texts.requests import require_text

_REMEDY = "check the path of the data file (data.path)"


@dataclass(frozen=True)
class Row:
    """One row of a data file, or an object inside a row.

    Args:
        source: file and place, for error messages: "zsre.json row 3" (counted from 0, as Python indexes the list)
            or "zsre.jsonl line 4" (counted from 1, as editors do).
        values: the fields.
        fault: why the row could not be read at all; empty when it could.
        prefix: where in the row this object lies ("requested_rewrite."), for error messages.

    >>> row = Row("facts.json row 0", {"src": "What is the capital of France?", "answers": [" Cairo"]})
    >>> row.text("prompt", "src"), row.texts("answers")
    ('What is the capital of France?', ('Cairo',))
    >>> row.text("subject")
    Traceback (most recent call last):
    editors.common.errors.DataError: subject is missing
    """

    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    prefix: str = ""

    def value(self, *names: str) -> Any:
        """Return the first of these fields that is present.

        Raises:
            DataError: none of them is.
        """
        return self.values[self._present(names)]

    def _present(self, names: Sequence[str]) -> str:
        """The first of these fields that is present."""
        for name in names:
            if name in self.values:
                return name
        raise DataError(f"{self.prefix}{' or '.join(names)} is missing")

    def text(self, *names: str) -> str:
        """Return the first of these fields that is present; outer blanks are cut off.

        Blanks are cut because prompt and target are joined with exactly one space, and some targets of the published
        zsRE files start with a blank of their own.

        Raises:
            DataError: the field is missing, not text, or blank.
        """
        name = self._present(names)
        return as_text(self.values[name], self.prefix + name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of at least one text.

        Raises:
            DataError: the field is missing, not a list, empty, or holds something that is not text or is blank.
        """
        items = self._list(name)
        if not items:
            raise DataError(f"{self.prefix}{name} is an empty list; at least one text is needed")
        return tuple(as_text(item, f"{self.prefix}{name}[{index}]") for index, item in enumerate(items))

    def wordings(self, *names: str) -> tuple[str, ...]:
        """Return the texts of these fields, each of one text or a list of texts, where they are present; each once.

        Raises:
            DataError: a field holds something else, or a blank text.
        """
        given = [name for name in names if self.values.get(name) not in (None, [])]
        return tuple(dict.fromkeys(text for name in given for text in self.one_or_more(name)))

    def one_or_more(self, name: str) -> tuple[str, ...]:
        """Return the text of a field, or the texts of its list.

        Raises:
            DataError: the field is missing or holds something else, or a text is blank.
        """
        return self.texts(name) if isinstance(self.value(name), list) else (self.text(name),)

    def answer(self, *names: str) -> str:
        """Return the first of these fields that is present: a text, or an object with its text as `str` (ROME).

        Raises:
            DataError: as `text`.
        """
        name = self._present(names)
        return self.part(name).text("str") if isinstance(self.values[name], dict) else self.text(name)

    def part(self, name: str) -> Row:
        """Return an object inside this row.

        Raises:
            DataError: the field is missing or not an object.
        """
        return self._wrap(self.value(name), name)

    def optional_part(self, name: str) -> Row:
        """Like `part`, but an object without fields where the field is absent or null."""
        value = self.values.get(name)
        return self._wrap({} if value is None else value, name)

    def parts(self, name: str) -> list[Row]:
        """Return the objects of a list inside this row; the list may be empty.

        Raises:
            DataError: the field is missing, not a list, or holds something that is not an object.
        """
        return [self._wrap(item, f"{name}[{index}]") for index, item in enumerate(self._list(name))]

    def _list(self, name: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list):
            raise DataError(f"{self.prefix}{name} must be a list, got {shown(value)}")
        return value

    def _wrap(self, value: Any, name: str) -> Row:
        if not isinstance(value, dict):
            raise DataError(f"{self.prefix}{name} must be an object, got {shown(value)}")
        return Row(self.source, value, prefix=f"{self.prefix}{name}.")


def as_text(value: Any, name: str) -> str:
    """Return `value` without outer blanks.

    Raises:
        DataError: it is not text, or blank, or too long, or holds half a surrogate pair, which no tokenizer reads.
    """
    if not isinstance(value, str):
        raise DataError(f"{name} must be text, got {shown(value)}")
    if not value.strip():
        raise DataError(f"{name} is empty")
    try:
        require_text(value, name)
    except EditorError as error:
        raise DataError(str(error)) from error
    return value.strip()


def load_rows(path: Path | str) -> list[Row]:
    """Load a file of rows: JSONL where the name ends in ".jsonl", otherwise one JSON list.

    A row that is broken on its own (a bad JSONL line, a list item that is no object) comes back with `fault` set, so
    that the caller can report it together with the rows whose fields are wrong.

    Raises:
        DataError: the file cannot be read, or, for JSON, is not valid UTF-8 or JSON or is not a list.
    """
    file = Path(path)
    if file.suffix == ".jsonl":
        lines = enumerate(read_file(file, _REMEDY).split(b"\n"), start=1)
        return [_line_row(line, f"{file.name} line {number}") for number, line in lines if line.strip()]
    document = load_json(file)
    if not isinstance(document, list):
        raise DataError(f"{file}: must hold a list of rows, got {shown(document)}")
    return [_row(item, f"{file.name} row {number}") for number, item in enumerate(document)]


def load_json(path: Path | str) -> Any:
    """Load a file that holds one JSON document.

    Raises:
        DataError: the file cannot be read, or is not valid UTF-8 or JSON.
    """
    raw = read_file(Path(path), _REMEDY)
    try:
        return parsed(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _line_row(line: bytes, source: str) -> Row:
    try:
        return _row(parsed(line), source)
    except DataError as error:
        return Row(source, fault=str(error))


def _row(item: Any, source: str) -> Row:
    if isinstance(item, dict):
        return Row(source, item)
    return Row(source, fault=f"must be an object, got {shown(item)}")
