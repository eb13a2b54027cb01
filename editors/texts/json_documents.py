"""Files of JSON that may come from anybody: what cannot be read is refused in one line, and nothing hangs."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

from editors.common.errors import DataError


def read_file(path: Path, remedy: str) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        remedy: what to do where it cannot be read, for the error message.

    Raises:
        DataError: it cannot be read, or is none: a pipe may wait for ever, and a device may never end.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{path.absolute()} is a pipe or a device, not a file; write what it gives into one first")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:  # a name with a null character
        raise DataError(f"{str(path)!r} is no name of a file ({error}); {remedy}") from error


def parsed(raw: bytes) -> Any:
    """The values of a JSON document, which may begin with a byte order mark.

    Args:
        raw: the document.

    Raises:
        DataError: it is not UTF-8 or not JSON, or it is nested too deeply, or a number has too many digits.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise DataError(f"not UTF-8 ({where}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        hint = "; a file with one row per line must be named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"not valid JSON ({error}){hint}") from error
    except RecursionError as error:
        levels = f"about {sys.getrecursionlimit():,} levels of lists and objects are read"
        raise DataError(f"not valid JSON (nested too deeply: {levels})") from error
    except ValueError as error:  # what Python says of long whole numbers
        digits = sys.get_int_max_str_digits()
        raise DataError(f"not valid JSON (a whole number of more than {digits:,} digits); write it as text") from error


def shown(value: Any, length: int = 80) -> str:
    """Type and value for an error message, cut to a readable length."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or a number of more digits than Python writes
        return type(value).__name__
    return f"{type(value).__name__} {text if len(text) <= length else f'{text[:length]}...'}"
