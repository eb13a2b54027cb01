"""Pickles that try to run code when they are loaded, for tests that nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Bomb:
    """Makes a file when it is unpickled.

    Args:
        path: of that file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)

    @property
    def went_off(self) -> bool:
        """Whether it was unpickled."""
        return self.path.exists()
