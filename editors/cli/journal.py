"""The journal of a batch: `rows.jsonl`, written row by row, so that an interrupted batch can go on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from editors.common.errors import ArtifactError
from editors.common.files import save_json

ROWS = "rows.jsonl"
_BATCH, _LOCK = "batch.json", ".lock"


class Journal:
    """The lines of a batch, open for further ones.

    Args:
        path: of the file; what an interrupted process wrote of a line is cut off.

    Attributes:
        rows: the numbers of the rows that had a line when it was opened.

    Raises:
        ArtifactError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self._file = path.open("ab")
        self._file.truncate(content.rfind(b"\n") + 1)
        try:
            self.rows = [int(line["row"]) for line in self.read()]
        except (KeyError, TypeError, ValueError) as error:
            self._file.close()
            raise ArtifactError(f"{path} is damaged: {error}; name a new folder") from error

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines so far."""
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is the system's when this returns, whatever happens to this process."""
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Wait until every line is on disk."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def require_journal_folder(folder: Path, *, resume: bool) -> None:
    """Check that a batch can be written to `folder`.

    Raises:
        ArtifactError: it holds an earlier batch that is not to be resumed, or something else.
    """
    if (folder / _BATCH).is_file():
        if not resume:
            raise ArtifactError(f"{folder} exists already; --resume goes on with the batch there, or name a new folder")
    elif folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {_LOCK}):
        raise ArtifactError(f"{folder} exists already, and holds no batch; name a new folder, or remove it first")


@contextmanager
def journal(folder: Path, facts: Mapping[str, Any], *, resume: bool) -> Iterator[Journal]:
    """Begin the journal in `folder`, or go on with the one there. One process has it at a time.

    Args:
        folder: of the batch; made if it is missing.
        facts: by name, plain JSON that must not change between the parts of a batch.
        resume: go on with an earlier batch, where there is one.

    Raises:
        ArtifactError: another process writes it, or what is there is of another batch, or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ArtifactError(f"{folder} is being written by another process; name another folder") from error
    try:
        require_journal_folder(folder, resume=resume)  # again: another process may have been faster, and be done
        _require_same(folder / _BATCH, facts)
        opened = Journal(folder / ROWS)
        try:
            yield opened
        except BaseException:
            if not opened.path.stat().st_size:
                _forget(folder)
            raise
        finally:
            opened.close()
    finally:
        lock.release()


def _forget(folder: Path) -> None:
    """Take back a batch in which no row was done (the model is not there, say); what else was written keeps it."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                path.rmdir()
        (folder / ROWS).unlink()
        (folder / _BATCH).unlink()


def _require_same(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a new batch; compare those of an earlier one."""
    if not path.exists():
        save_json(facts, path)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in facts if found[name] != facts[name]]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; name a new folder") from error
    if changed:
        raise ArtifactError(
            f"the batch in {path.parent} was begun with different {' and '.join(changed)}: it cannot be resumed with "
            "these; name a new folder"
        )
