"""What importing a part does not load, each in a fresh interpreter: it would cost seconds, or not be installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# matplotlib apart: torchmetrics loads it where it is installed.
LIBRARIES = ("deepspeed", "jsonargparse", "lightning", "omegaconf", "pytorch_lightning")
TRAINING = (*LIBRARIES, "matplotlib")
MODELS = ("torch", "transformers")
# What `--help` loads until it ends the process.
HELP = """import contextlib, io, {0}
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {0}.main(["--help"])
"""
METHODS = ("editors.methods.ke", "editors.methods.mend", "editors.methods.serac")


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import editors", (*TRAINING, *MODELS)),
        ("from editors.making.registry import Method", MODELS),
        ("import callbacks", (*TRAINING, *MODELS, *METHODS)),
        (HELP.format("editors.cli.line"), (*TRAINING, *MODELS, "rich")),
        *(
            pytest.param(statement, unwanted, marks=pytest.mark.slow)
            for statement, unwanted in (
                ("from callbacks import SaveOnSigterm, Watchdog", METHODS),
                ("import editors.artifacts.editor", TRAINING),
                ("import editors.scoring.evaluator", LIBRARIES),
                ("import editors.serving.batch", LIBRARIES),
            )
        ),
    ],
)
def test_importing_loads_no_more_than_it_says(statement: str, unwanted: tuple[str, ...]) -> None:
    script = f"import sys\n{statement}\nprint(sorted(set({unwanted}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
