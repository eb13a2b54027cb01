"""Writes the plans in docs/scaling.md: `python -m benchmarks.plan_tables [PAGE]`.

Runs each `python train.py plan …` of the page and puts what it prints into the block that follows.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PAGE = _ROOT / "docs" / "scaling.md"
_PLAN = re.compile(
    r"(?P<head>```bash\n(?P<command>python train\.py plan [^\n]*)\n```\n\n```text\n)(?P<shown>.*?)```", re.S
)
_WIDTH = 122


def planned(command: str) -> str:
    """The tables that a command of the page prints."""
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=_ROOT,
        env={**os.environ, "COLUMNS": str(_WIDTH), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    tables, _, _ = done.stdout.partition("\n\n")
    return "".join(f"{line.rstrip()}\n" for line in tables.splitlines())


def plans(text: str) -> list[tuple[str, str]]:
    """The commands of a page, each with what the page shows for it."""
    return [(match["command"], match["shown"]) for match in _PLAN.finditer(text)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the page."""
    given = sys.argv[1:] if arguments is None else arguments
    page = Path(given[0]) if given else _PAGE
    text = page.read_text(encoding="utf-8")
    page.write_text(_PLAN.sub(lambda match: f"{match['head']}{planned(match['command'])}```", text), encoding="utf-8")


if __name__ == "__main__":
    main()
