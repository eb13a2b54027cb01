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
from typing import Any

PROCESSES = 2
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
_ROOT = Path(__file__).parents[2]


def item(class_path: str, **init_args: Any) -> dict[str, Any]:
    """An entry of a list of callbacks."""
    return {"class_path": class_path, "init_args": init_args}


def under(strategy: str) -> list[str]:
    """Arguments for two processes on the CPU."""
    if strategy == "ddp":
        return ["--trainer.strategy=ddp", "--trainer.devices=2"]
    init = "--trainer.strategy.init_args"
    # The tiny model's weights would all be small enough to be kept whole.
    return ["--config=configs/strategy/zero3_cpu.yaml", f"{init}.stage={strategy[-1]}", f"{init}.keep_whole_below=1"]


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
            assert process.wait(timeout=1800) == 0, output.read_text()[-4000:]
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
