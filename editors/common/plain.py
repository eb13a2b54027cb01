"""Plain values from JSON files that may be a stranger's: small, shallow, and of the kinds that were asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from editors.common.errors import ArtifactError, EditorError

_MEGABYTE = 2**20
_DEEPEST = 20
_LONGEST_TEXT = 10_000
_LARGEST_NUMBER = 2**40
_SHOWN = 80


def read_json(path: Path, megabytes: int = 8) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        megabytes: most that it may have.

    Raises:
        OSError: it cannot be read.
        ArtifactError: it is too large, no JSON, or nested too deeply.
    """
    with path.open("rb") as file:
        content = file.read(megabytes * _MEGABYTE + 1)
    if len(content) > megabytes * _MEGABYTE:
        raise ArtifactError(f"{path} is refused: it has more than {megabytes} MB, and real ones have some kilobytes")
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}. Copy or export it again.") from error
    _require_shallow(values, path)
    return values


def _require_shallow(values: Any, path: Path) -> None:
    """Refuse what is nested so deeply that walking it would overflow the interpreter's stack."""
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise ArtifactError(f"{path} is refused: it is nested more than {_DEEPEST} deep")


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def require_fields(kind: type, values: Any, place: str) -> None:
    """Check that `values` are the fields of a dataclass, all of them of their kinds.

    Args:
        kind: the dataclass; its fields are plain values or further dataclasses.
        values: from a file.
        place: of them, for messages.

    Raises:
        ArtifactError: a field is missing, unknown, of another kind, or beyond any sensible size.
    """
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{place} must be a mapping of fields, got {_shown(values)}")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ArtifactError(f"{place} has the field {_shown(unknown[0])}, which is none of {', '.join(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ArtifactError(f"{place} lacks the field {name!r}; it has {_shown(', '.join(values) or 'none')}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        require_kind(hints[name], value, f"{place}.{name}")


def require_own_kinds(config: Any, place: str) -> None:
    """Check, after a dataclass was made, that its fields are of their kinds: Python itself takes anything.

    Args:
        config: an instance.
        place: of it in a configuration.

    Raises:
        EditorError: one is not.
    """
    try:
        hints = get_type_hints(type(config))
        for field in fields(config):
            value = getattr(config, field.name)
            if not is_dataclass(value):  # checked when it was made
                require_kind(hints[field.name], value, f"{place}.{field.name}")
    except ArtifactError as error:
        raise EditorError(str(error)) from None


def require_kind(kind: Any, value: Any, place: str) -> None:
    """Check that a value is of a kind as annotations name it; arguments and errors are those of `require_fields`."""
    origin = get_origin(kind)
    if kind is Any:
        return
    if origin in (Union, UnionType):
        _require_one_of(get_args(kind), value, place)
    elif origin is Literal:
        if value not in get_args(kind):
            raise ArtifactError(f"{place} must be one of {', '.join(map(repr, get_args(kind)))}, got {_shown(value)}")
    elif origin is list:
        _require(isinstance(value, list), "a list", value, place)
        for number, item in enumerate(value):
            require_kind(get_args(kind)[0], item, f"{place}[{number}]")
    elif origin is dict:
        _require(isinstance(value, dict), "a mapping", value, place)
        for key, item in value.items():
            require_kind(str, key, f"a name in {place}")
            require_kind(get_args(kind)[1], item, f"{place}.{_shown(key)}")
    elif kind in _CHECKS:
        what, is_one = _CHECKS[kind]
        _require(is_one(value), what, value, place)
    else:
        require_fields(kind, value, place)


def _require_one_of(kinds: tuple[Any, ...], value: Any, place: str) -> None:
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    for kind in others[:-1]:
        try:
            return require_kind(kind, value, place)
        except ArtifactError:
            continue
    return require_kind(others[-1], value, place)


def _require(fits: bool, what: str, value: Any, place: str) -> None:
    if not fits:
        raise ArtifactError(f"{place} must be {what}, got {_shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


_CHECKS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: (f"a whole number of at most {_LARGEST_NUMBER}", _is_number),
    float: ("a finite number", lambda value: _is_number(value) or (isinstance(value, float) and math.isfinite(value))),
    str: (
        f"a text of at most {_LONGEST_TEXT} characters",
        lambda value: isinstance(value, str) and len(value) <= _LONGEST_TEXT,
    ),
    NoneType: ("null", lambda value: value is None),
}


def _shown(value: Any) -> str:
    """A value as far as it fits on the line of a message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST_NUMBER:
        return "a larger number"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
