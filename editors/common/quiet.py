"""What libraries print that no user of hyperedit can use: it hides what matters."""

from __future__ import annotations

import logging
import os
import sys


def hide_bars() -> None:
    """Where nobody watches, have no progress bars: the reader of GGUF files has one that transformers does not hide.

    To be called before anything imports tqdm, which looks but then.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def quiet_models() -> None:
    """Silence what loading a model prints: a kernel that is not used here, and progress bars where nobody watches."""
    # Of weights in four bits on CPUs; what hyperedit computes with them does not use it.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - slow to import

        disable_progress_bar()
