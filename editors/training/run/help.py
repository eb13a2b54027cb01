"""Help for the classes that a configuration names: the parser's own ends where a class has to be chosen."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

# A line for a whole section as one file, and one that only says that there is help.
_SECTION = re.compile(r"^  --[\w.]+ CONFIG\s+Path to a configuration file\.\n", re.MULTILINE)


def explained(classes: Mapping[str, Iterable[type]], shared: Mapping[str, Sequence[str]]) -> str:
    """The options of classes, with their types, defaults and meaning.

    Args:
        classes: the classes that may stand under a key of the configuration, such as "model".
        shared: for each key the parameters that all its classes have; they are explained with the first one only.
    """
    parts = []
    for key, listed in classes.items():
        for number, each in enumerate(listed):
            skipped = set(shared.get(key, ())) if number else set()
            parts.append(f"\n{each.__name__} ({each.__module__}.{each.__name__}):\n\n{_options(each, key, skipped)}")
    return "".join(parts)


def _options(shown: type, key: str, skipped: set[str]) -> str:
    parser = ArgumentParser(usage=argparse.SUPPRESS, add_help=False, parser_mode="omegaconf")
    parser.add_class_arguments(shown, key, skip=skipped)
    return _SECTION.sub("", parser.format_help().lstrip())


def named(classes: Iterable[type], arguments: Sequence[str]) -> list[type]:
    """Those of the classes that a command line or one of its files names; all where none is named.

    Args:
        classes: that may be named, by their names or paths.
        arguments: of the command line.
    """
    known = list(classes)
    words = {word for argument in arguments for word in re.findall(r"[\w.]+", _content(argument))}
    found = [each for each in known if {each.__name__, f"{each.__module__}.{each.__name__}"} & words]
    return found or known


def _content(argument: str) -> str:
    """An argument, or what is in the file that it names."""
    path = Path(argument.rpartition("=")[2])
    try:
        return path.read_text(encoding="utf-8") if path.suffix in (".yaml", ".yml") else argument
    except (OSError, UnicodeDecodeError, ValueError):
        return argument  # the parser says what is wrong with it
