"""The methods of `docs/adding_a_method.md`, installed as a package of their own, live as those of this project do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation import ROOT, write_new_methods


@pytest.mark.slow
def test_methods_of_another_package_pass_the_tests_of_their_page(tmp_path: Path) -> None:
    folder = write_new_methods(tmp_path)
    options = ["-q", "-p", "tests.conftest", f"--rootdir={folder}", f"--config-file={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(folder / "test_my_methods.py")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
