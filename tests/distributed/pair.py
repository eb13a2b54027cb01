"""Two processes that run command lines together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROCESSES = 2
_ROOT = Path(__file__).parents[2]


@contextmanager
def pair(folder: Path, command_lines: Sequence[Sequence[str]]) -> Iterator[None]:
    """Run command lines in two processes, one after the other, while the block runs; at its end wait for them.

    Args:
        folder: for what they print.
        command_lines: arguments of `train.py`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / "command_lines.json"
    work.write_text(json.dumps(command_lines))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    outputs = [folder / f"rank{rank}.txt" for rank in range(PROCESSES)]
    started = [_start(work, rank, port, output) for rank, output in enumerate(outputs)]
    try:
        yield
        for process, output in zip(started, outputs, strict=True):
            assert process.wait(timeout=900) == 0, output.read_text()[-4000:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _start(work: Path, rank: int, port: int, output: Path) -> subprocess.Popen[bytes]:
    place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.worker", str(work)],
            cwd=_ROOT,
            env={**os.environ, **place, **meeting},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
