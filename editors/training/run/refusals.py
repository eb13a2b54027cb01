"""What Lightning says of settings and checkpoints that it cannot use, in one line in place of a traceback."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from editors.common.errors import EditorError, UsageError, one_line
from editors.training.run.checkpoint_io import CheckpointReadError
from editors.training.run.errors import ConfigurationError, short_message

_LIGHTNING = Path(lightning.__file__).parent
_RESTORING = "checkpoint_connector.py"
_EARLY_STOPPING = "early_stopping.py"
# How jsonargparse (4.53) begins what it says of a value that a constructor refuses.
_NO_ALTERNATIVE = "Does not validate against any"
_SHOWN = 500


def restoring_error(error: BaseException, path: Any) -> EditorError | None:
    """That a checkpoint does not fit, where it led to `error`: its parts may be anything.

    Args:
        error: from a run.
        path: of the checkpoint, if there was one.
    """
    if not path or not any(Path(frame.filename).name == _RESTORING for frame in _frames(error)):
        return None
    return CheckpointReadError(
        f"checkpoint {path} does not fit this run: {type(error).__name__}: {one_line(error)[:_SHOWN]}. Use the "
        "configuration that it was trained with, or another checkpoint of the run"
    )


def lightnings_error(error: BaseException) -> EditorError | None:
    """What Lightning refused, where `error` is that: its own checks raise these types, and so do few faults."""
    if isinstance(error, ValueError) and str(error).startswith(_NO_ALTERNATIVE):
        return ConfigurationError(short_message(str(error))[:_SHOWN])
    frames = _frames(error)
    last = Path(frames[-1].filename) if frames else Path()
    inside = last.is_relative_to(_LIGHTNING)
    kinds = (ValueError, TypeError, RuntimeError) if last.name == _EARLY_STOPPING else (ValueError, TypeError)
    if isinstance(error, MisconfigurationException) or (inside and isinstance(error, kinds)):
        return UsageError(one_line(error)[:_SHOWN])
    return None


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))
