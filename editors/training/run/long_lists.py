"""Long lists in a configuration: jsonargparse (4.53) copies the whole list once for each of its items."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from jsonargparse import _typehints

# What the parser hands on from a list to each of its items: the list before, and as it was given. Neither is changed.
_READ_ONLY = ("prev_val", "orig_val")


@contextmanager
def quick_lists() -> Iterator[None]:
    """Let parsing take time in proportion to the length of a list, not to its square.

    Without it a data module with 400 sources takes two minutes to start.
    """
    copying = getattr(_typehints, "deepcopy", None)
    if copying is not deepcopy:  # another version, or a parser inside a parser
        yield
        return
    _typehints.deepcopy = _copied  # type: ignore[assignment]
    try:
        yield
    finally:
        _typehints.deepcopy = copying


def _copied(value: Any) -> Any:
    """A copy of what the parser hands on to an item of a list; of anything else a copy as ever."""
    if not isinstance(value, dict) or not value.keys() >= set(_READ_ONLY):
        return deepcopy(value)
    return {name: own if name in _READ_ONLY else deepcopy(own) for name, own in value.items()}
