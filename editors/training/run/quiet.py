"""What Lightning (2.6) says of every run that is meant to be so, and what it advertises: left out."""

from __future__ import annotations

import logging
import warnings

from lightning_utilities.core import rank_zero

# Beginnings of lines that say nothing about this run.
_LINES = ("💡 Tip:", "TPU available: False", "Loading `train_dataloader` to estimate")
# The base model stays in eval mode; every run has a folder of its own; what Lightning calls that others deprecate.
_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",
    r"The dirpath has changed from",
    r".isinstance\(treespec, LeafSpec\). is deprecated",
)


def quiet_trainer() -> None:
    """Leave those lines and warnings out from now on."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
    if not any(isinstance(each, _Chosen) for each in rank_zero.log.filters):
        rank_zero.log.addFilter(_Chosen())


class _Chosen(logging.Filter):
    """Lets through what is worth a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is kept."""
        return not record.getMessage().startswith(_LINES)
