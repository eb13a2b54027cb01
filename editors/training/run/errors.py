"""What is wrong in a configuration, in one line: place, fault, and the name that was probably meant."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from editors.common.errors import EditorError, UsageError

_PLACE = re.compile(r'Parser key "([^"]+)"|Problem with given class_path \'([^\']+)\'')
_UNKNOWN = re.compile(
    r"Option '(?P<option>[^']+)' is not accepted|does not accept option '(?P<key>[^']+)'"
    r"|unrecognized arguments: --(?P<argument>[^=\s]+)|no attribute '(?P<attribute>[^']+)'"
)
# What the parser says about the alternatives it tried as well ("... or None", "... or the path of a file").
_SIDE_ISSUE = re.compile(
    r"Expected a <class 'NoneType'>|Expected a path but|Does not validate|Subtypes:|Errors:|Given value"
)

_EXPECTED = re.compile(
    r"Expected an? (?:<class '(?P<type>[^']+)'>|typing\.Literal\[(?P<choices>[^]]+)\])\. Got value: "
)
# Of a value that fits none of several kinds.
_KIND = re.compile(r"Expected an? <class '([^']+)'>")
_GIVEN = re.compile(r"Given value: (.*)")
# How Lightning and Python say it; Lightning's hint names the package and may add a version.
_MISSING = re.compile(
    r"(?:class_path '(?P<user>[^']+)':\s*)?[^\n]*(?:pip install -U '?|No module named ')(?P<package>[\w-]+)"
)

# Options that earlier versions had, which saved configurations may name, and what is done instead.
_REMOVED = {
    "EditDataModule.padding_side": "it was removed because it changed no result: leave it out",
    "ZsRE.repeat": "it was removed: datamodules.Sample has it; give it this source as its `source`",
    "CounterFact.limit": "it was removed: datamodules.Sample has it; give it this source as its `source`",
}


class ConfigurationError(UsageError):
    """A key or value of the configuration is not accepted."""


class ShortErrorParser(LightningArgumentParser):
    """A parser whose errors are one line instead of the usage of everything and a tree of alternatives."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error in short form.

        Raises:
            ConfigurationError: always, but for the parsers that jsonargparse makes for its own use.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(short_message(message, _options(self))) from None


def own_error(error: BaseException) -> EditorError | None:
    """The error of ours that led to `error`, or `error` itself where it is ours."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, EditorError):
        found = found.__cause__ or found.__context__
    return found


def missing_package(error: BaseException) -> EditorError | None:
    """What to install, where `error` says that a class of the configuration needs a package that is not there."""
    match = _MISSING.search(str(error))
    if match is None:
        return None
    user = f"{match['user']}: " if match["user"] else ""
    package = match["package"]
    return EditorError(f"{user}Python package {package!r} is not installed; pip install {package}")


def short_message(message: str, options: Iterable[str] = ()) -> str:
    """The cause in a message of jsonargparse (checked with 4.53), with its place; the message itself if it has none.

    Args:
        message: an indented tree of places and causes.
        options: the command line's option names.
    """
    places, cause = _cause(message.splitlines())
    if _KIND.fullmatch(cause) and (given := _GIVEN.search(message)):
        kinds = dict.fromkeys(kind for kind in _KIND.findall(message) if kind != "NoneType")
        cause = f"must be {' or '.join(kinds)}, got {given[1]}"
    classes = [name for is_class, name in places if is_class]
    keys = ".".join(name for is_class, name in places if not is_class)
    where = f"{keys} ({classes[-1]})" if keys and classes else keys or "".join(classes[-1:])
    guess = _did_you_mean(cause, classes[-1] if classes else "", options)
    return f"{where}: {cause}{guess}" if where else f"{cause}{guess}"


def _cause(lines: list[str]) -> tuple[list[tuple[bool, str]], str]:
    """The first line that says what is wrong, and the places it stands below: `(is a class, name)`."""
    places: list[tuple[int, bool, str]] = []
    for line in lines:
        text = line.strip().removeprefix("- ")
        if not text:
            continue
        depth = line.index(text)
        places = [place for place in places if place[0] < depth]
        match = _PLACE.match(text)
        if match:
            places.append((depth, match[1] is None, match[1] or match[2]))
            text = text[match.end() :].lstrip(": ")
        if text and not _SIDE_ISSUE.match(text):
            return [(is_class, name) for _, is_class, name in places], _EXPECTED.sub(_plain, text)
    return [], " ".join(" ".join(lines).split())


def _plain(expected: re.Match[str]) -> str:
    return f"must be {expected['type']}, got " if expected["type"] else f"must be one of {expected['choices']}, got "


def _did_you_mean(cause: str, class_path: str, options: Iterable[str]) -> str:
    match = _UNKNOWN.search(cause)
    if not match:
        return ""
    name = next(group for group in match.groups() if group)
    instead = _REMOVED.get(f"{class_path.rpartition('.')[2]}.{name}")
    if instead:
        return f"; {instead}"
    known = _attributes(class_path) if match["attribute"] else [*_parameters(class_path), *options]
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; --help lists what is"


def _load(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _attributes(class_path: str) -> list[str]:
    """The public names beside the one that `class_path` asks for."""
    try:
        return [name for name in dir(import_module(class_path.rpartition(".")[0])) if not name.startswith("_")]
    except (ImportError, ValueError):
        return []


def _parameters(class_path: str) -> Iterator[str]:
    """The parameters of a class; those of a parameter that is a dataclass as `PARAMETER.FIELD`."""
    found = _load(class_path)
    if found is None:
        return
    types = typing.get_type_hints(found.__init__)
    for name in inspect.signature(found).parameters:
        yield name
        if dataclasses.is_dataclass(types.get(name)):
            yield from (f"{name}.{field.name}" for field in dataclasses.fields(types[name]))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All option names of a parser and its subcommands."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list
        if isinstance(action.choices, dict):
            for subcommand in action.choices.values():
                yield from _options(subcommand)
        else:
            yield action.dest
