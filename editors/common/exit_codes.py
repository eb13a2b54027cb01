"""What the exit code of every command means, of `train.py` and of `python -m editors` alike."""

from __future__ import annotations

from enum import IntEnum

from editors.common.errors import EditorError, UsageError


class ExitCode(IntEnum):
    """Exit codes, for pipelines. A process that a signal ends has the shell's code for it (137 after a kill)."""

    DONE = 0
    """All done."""
    ERROR = 1
    """Something could not be done; one line says what. With a traceback it is a fault of the program."""
    USAGE = 2
    """The command line or a configuration asks for what does not exist. Trying again cannot help."""
    SOME_BAD = 3
    """Some rows of a batch are bad; the others are done."""

    @classmethod
    def of(cls, error: EditorError | OSError) -> ExitCode:
        """The code that tells of an error.

        >>> ExitCode.of(UsageError("--rank must be at least 1, got 0"))
        <ExitCode.USAGE: 2>
        """
        return cls.USAGE if isinstance(error, UsageError) else cls.ERROR
