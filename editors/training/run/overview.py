"""What `train.py --help` shows, without importing what a training needs: that takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS = {
    "fit": "train an editor; the run's folder gets its checkpoints, results and artifact",
    "validate": "score a trained editor on the validation data",
    "test": "score a trained editor on the test data, generated answers and report card included",
    "export": "write a trained editor as an artifact, or as an archive for EasyEdit",
    "plan": "show what training takes on each GPU under each strategy; nothing is loaded",
}

_OVERVIEW = """usage: train.py {{{verbs}}} --config FILE [--config FILE ...] [--KEY VALUE ...]

Train, score and export knowledge editors of frozen language models.

verbs:
{listed}

first steps:
  python train.py fit --config configs/demo.yaml
  python train.py test --config configs/demo.yaml --ckpt_path last

options:
  train.py VERB --help                           every key of a configuration, those of the editors last
  train.py fit --config FILE --help              likewise, of the editor in FILE
  train.py fit --config FILE --print_config      the whole configuration that FILE comes to

Any key of a configuration is an option too: --trainer.max_steps 500. To use a trained editor: python -m editors --help
"""


def overview() -> str:
    """The verbs, and where to read more."""
    listed = "\n".join(f"  {verb:<10}{does}" for verb, does in VERBS.items())
    return _OVERVIEW.format(verbs=",".join(VERBS), listed=listed)


def show_overview(arguments: Sequence[str]) -> None:
    """Print the overview and end the process, where a command line asks for it.

    Args:
        arguments: of the process.
    """
    if list(arguments) in (["-h"], ["--help"]):
        sys.stdout.write(overview())
        sys.exit(0)
