"""One of several processes that run command lines together, as `torchrun` or a cluster would start it; see `pair`.

Starting Python and DeepSpeed takes far longer than a tiny run, so one pair of processes does all of them.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from tests.lifecycle.crashes import Crash
from tests.tiny_world import run


def main() -> None:
    """Run every command line of the file; one that is made to crash is not the end."""
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        print("RUN", *arguments, flush=True)  # noqa: T201 - finds the place in the output of a failed process
        with suppress(Crash):
            run(arguments)


if __name__ == "__main__":
    main()
