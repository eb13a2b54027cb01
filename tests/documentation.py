"""The fenced blocks of the documentation, and the package that one page of it describes."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from editors.making.registry import forget_methods

ROOT = Path(__file__).resolve().parents[1]
NEW_METHODS = ROOT / "docs/adding_a_method.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Args:
        page: the file it is in.
        line: its first line there.
        language: what the fence says.
        text: the code.
        file: the file it is meant to be, as named by `<!-- test: FILE -->` above it; empty where it is none.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = r"(?:^<!-- test: (?P<file>\S+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start("code")) + 1
        yield Block(page, line, match["language"], match["code"], match["file"] or "")


def write_files(folder: Path, page: Path) -> None:
    """Write the files that the page's examples consist of."""
    for block in blocks(page):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


def write_new_methods(folder: Path) -> Path:
    """Write the package with the page's own methods as if it were installed in `folder`. Returns `folder`."""
    write_files(folder, NEW_METHODS)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["entry-points"].items()
    points = [f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in own.items()) for group, own in groups]
    information = folder / f"{project['name']}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (information / "entry_points.txt").write_text("\n".join(points))
    return folder


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside this context packages in `folder` are installed; methods are looked for anew."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        forget_methods()
        try:
            yield
        finally:
            forget_methods()
            for name in set(sys.modules) - before:
                if str(folder) in str(getattr(sys.modules[name], "__file__", None)):
                    del sys.modules[name]
