"""Files of `torch.save`, which are zip archives: is each whole, and no larger inside than outside?"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

# What reading a zip archive raises where it is damaged, or is none.
UNREADABLE_ZIP = (
    OSError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
    EOFError,
    zlib.error,
)


class RefusedArchive(Exception):
    """Why an archive is not read, as the end of a sentence about it."""


def checked_sizes(file: zipfile.ZipFile, path: Path) -> dict[str, int]:
    """Bytes of each member. They are stored as they are, so they cannot take more than the file has.

    Raises:
        RefusedArchive: they are not, or claim to.
    """
    members = file.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise RefusedArchive("holds compressed members, which torch.save does not write")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise RefusedArchive("claims to hold more than it has")
    return {member.filename: member.file_size for member in members}


def require_whole_archive(path: Path) -> None:
    """Read the archive through, and compare the checksum of each member: torch (2.13) loads a wrong bit as it is.

    Raises:
        RefusedArchive: a member is damaged, or it is no such archive.
    """
    if not path.is_file():
        raise RefusedArchive("is a folder" if path.is_dir() else "is no file")
    try:
        with zipfile.ZipFile(path) as file:
            checked_sizes(file, path)
            damaged = file.testzip()
    except UNREADABLE_ZIP as error:
        raise RefusedArchive(f"cannot be read as a file of torch.save: {error}") from error
    if damaged is not None:
        raise RefusedArchive(f"is damaged: the checksum of its part {damaged[:100]!r} is wrong")
