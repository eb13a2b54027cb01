"""Reader of plain texts, on which the perplexity of an edited model is measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from editors.common.errors import DataError, EditorError
from editors.texts.json_documents import parsed, read_file, shown
from editors.texts.requests import require_unicode

# WikiText's headings: " = Title = ", " = = Section = = ". A line that only begins so is text.
_HEADING = re.compile(r"(=(?: =)*) \S.* \1")
_SHOWN_FAULTS = 20


def read_running_texts(paths: Iterable[Path | str]) -> dict[str, list[str]]:
    """Read files of plain texts: the texts of each by its name, or by its path where an earlier one has that name.

    Args:
        paths: the files, each as `read_plain_texts` reads it.

    Raises:
        DataError: as there.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        name = Path(path).name
        found[str(path) if name in found else name] = read_plain_texts(path)
    return found


def read_plain_texts(path: Path | str) -> list[str]:
    """Read a file of plain texts; outer blanks are cut off.

    A file named ".txt" has one paragraph in each line, as WikiText has; blank lines and WikiText's headings are left
    out. Any other file is a JSON list: of texts, or of objects with the field `Text` (ME-PPL). Either may begin with a
    byte order mark.

    Args:
        path: the file.

    Raises:
        DataError: the file cannot be read, is not valid UTF-8 or JSON, or has no text; or rows of it are no text, or
            are blank.
    """
    content = read_file(Path(path), "check the path")
    is_txt = Path(path).suffix.lower() == ".txt"
    texts = _paragraphs(_decoded(content, Path(path))) if is_txt else _listed(content, Path(path))
    if not texts:
        raise DataError(f"{path}: holds no text; perplexity needs at least one")
    return texts


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 ({error.reason} at offset {error.start}); save it as UTF-8") from error


def _paragraphs(content: str) -> list[str]:
    lines = (line.strip() for line in content.split("\n"))
    return [line for line in lines if line and not _HEADING.fullmatch(line)]


def _listed(content: bytes, file: Path) -> list[str]:
    """The texts of a JSON list; reports all items that hold none."""
    texts: list[str] = []
    faults: list[str] = []
    for number, item in enumerate(_items(content, file)):
        try:
            texts.append(_text(item))
        except EditorError as error:
            faults.append(f"{file.name} row {number}: {error}")
    if faults:
        more = [f"... and {len(faults) - _SHOWN_FAULTS} more"] if len(faults) > _SHOWN_FAULTS else []
        listed = "\n  ".join([*faults[:_SHOWN_FAULTS], *more])
        raise DataError(
            f"{file}: {len(faults)} of {len(faults) + len(texts)} row(s) are broken\n  {listed}\nMend the file."
        )
    return texts


def _items(content: bytes, file: Path) -> Sequence[object]:
    try:
        document = parsed(content)
    except DataError as error:
        raise DataError(f"{file}: {error}; a file with one paragraph in each line must be named .txt") from error
    if not isinstance(document, list):
        raise DataError(f"{file}: must hold a list of texts, got {shown(document)}")
    return document


def _text(item: object) -> str:
    """The text that an item of the list is, or holds."""
    if isinstance(item, str):
        return _stripped(item, "the text")
    if not isinstance(item, dict):
        raise DataError(f"must be a text, or an object with the field Text, got {shown(item)}")
    if "Text" not in item:
        raise DataError("Text is missing")
    return _stripped(item["Text"], "Text")


def _stripped(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be text, got {shown(value)}")
    if not value.strip():
        raise DataError(f"{name} is empty")
    require_unicode(value, "the text")
    return value.strip()
