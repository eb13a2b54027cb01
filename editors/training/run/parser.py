"""How a configuration is read: files that build on other files, names of earlier versions, readable errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from editors.common.errors import UsageError
from editors.training.run.errors import ShortErrorParser
from editors.training.run.moved import current_argument, current_file


class RunParser(ShortErrorParser):
    """A parser that also knows where classes were in earlier versions; it takes no abbreviated keys.

    The last holds too for the parsers that jsonargparse makes of it, one for each class and group of the configuration.
    """

    explain: Callable[[], str] | None = None
    """Says what stands behind the parser's own help."""

    def format_help(self, *more: Any, **options: Any) -> str:
        """Return the parser's help, and behind it what `explain` says."""
        return super().format_help(*more, **options) + ("" if self.explain is None else self.explain())

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse the command line, in present names."""
        given = sys.argv[1:] if args is None else args
        for argument in given:
            _require_unicode(argument)
        return super().parse_args([current_argument(argument) for argument in given], *more, **options)

    def parse_string(self, content: str, *more: Any, **options: Any) -> Any:
        """Parse what is in a configuration file, in present names."""
        return super().parse_string(current_file(content), *more, **options)


def _require_unicode(argument: str) -> None:
    """Check that an argument can be written down again: in the C locale Python cannot read all letters.

    Raises:
        UsageError: it cannot.
    """
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"{argument!a} holds letters that Python cannot read in this locale; set LC_ALL=C.UTF-8 or PYTHONUTF8=1, "
            "or use names in ASCII"
        ) from None


class ConfigFile(ActionConfigFile):
    """`--config FILE`: the files that FILE builds on, those of its key `config`, and over them FILE itself.

    The parser keeps a list under that key as it is (jsonargparse 4.53), and does not save it.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        """Lay the files over the configuration so far."""
        for file in (*_built_on(values), values):
            _require_text(Path(file))
            self.apply_config(parser, cfg, self.dest, str(file))


def _require_text(path: Path) -> None:
    """Check that a file is text as YAML has it.

    Raises:
        UsageError: it is in another encoding.
    """
    try:
        if path.is_file():
            path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not in UTF-8 (byte {error.object[error.start]:#04x} at place {error.start}); save it in UTF-8"
        ) from None
    except (OSError, ValueError):
        return  # the parser says what is wrong with it


def _built_on(value: str, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files that a file builds on, lowest first; none where `value` is no file.

    Args:
        value: what is given for `--config`; it may also be a configuration itself, or an address.
        above: the files that build on this one.

    Raises:
        UsageError: a file that is named does not exist, or builds on itself.
    """
    path = Path(value)
    for name in _named_files(value):
        file = path.parent / name
        if not file.is_file() or file in (*above, path):
            fault = "builds on itself" if file.is_file() else "does not exist"
            raise UsageError(f"{path} builds on {name}, which {fault}; its key config is relative to {path.parent}")
        yield from _built_on(str(file), (*above, path))
        yield file


def _named_files(value: str) -> list[str]:
    """What stands under a file's key `config`.

    Raises:
        UsageError: it is not a list of names.
    """
    try:
        content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []  # the parser says what is wrong with it
    names = content.get("config", []) if isinstance(content, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{value}: config must be a list of files to build on, got {names!r}")
    return names
