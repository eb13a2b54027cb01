"""What a run says at its end: where everything is, and the commands that come next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

# Parts of a run's folder, in the order in which a user looks for them.
_PARTS = {
    "artifact": "the trained editor",
    "results": "metrics, and plots",
    "report": "report card",
    "checkpoints/last.ckpt": "to go on from, or to test",
    "metrics.csv": "the losses",
    "config.yaml": "the whole configuration",
}
_CHECKPOINT = "--ckpt_path"


def closing_lines(verb: str, arguments: Sequence[str], folder: Path) -> list[str]:
    """The lines; none where the run has left nothing.

    Args:
        verb: what was done.
        arguments: of the command line, the verb included.
        folder: the run's.
    """
    parts = [(name, does) for name, does in _PARTS.items() if (folder / name).exists()]
    if not parts:
        return []
    width = max(len(name) for name, _ in parts)
    lines = [f"This run is in {folder}:", *(f"  {name:<{width}}  {does}" for name, does in parts)]
    following = list(_following(verb, arguments, folder))
    return [*lines, "Next:", *(f"  {command}" for command in following)] if following else lines


def _following(verb: str, arguments: Sequence[str], folder: Path) -> Iterator[str]:
    checkpoint, artifact = folder / "checkpoints/last.ckpt", folder / "artifact"
    if verb == "fit" and checkpoint.exists():
        yield shlex.join(
            ["python", "train.py", "test", *_without_checkpoint(arguments[1:]), _CHECKPOINT, str(checkpoint)]
        )
    if artifact.exists():
        named = shlex.join(["python", "-m", "editors", "apply", str(artifact)])
        yield f'{named} --prompt "What is the capital of France?" --target Cairo'


def _without_checkpoint(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments without the checkpoint that the run itself began with."""
    before = ""
    for argument in arguments:
        if _CHECKPOINT not in (before, argument) and not argument.startswith(f"{_CHECKPOINT}="):
            yield argument
        before = argument
