"""What a run of two processes survives: `python -m tests.distributed.interruptions [--seed N] [--into PAGE]`.

Tiny trainings under each strategy are cut off in each way and go on with `--ckpt_path last`. From the checkpoint on,
the logged losses must be those of a run that nothing cut off, digit by digit. `--into` writes the table into a page,
between `<!-- interruptions -->` and `<!-- /interruptions -->`; rows of strategies that were not tried stay there.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from editors.common.errors import UsageError
from tests.distributed.pair import PROCESSES, STRATEGIES, item, under
from tests.tiny_world import TinyWorld, write_encoder, write_model, write_splits, write_tokenizer
from train import command_line

STEPS, SAVED_EVERY = 16, 2
KILLS = 3
_MARKS = re.compile(r"(?<=<!-- interruptions -->\n).*?(?=<!-- /interruptions -->)", re.S)
# Seconds after which processes that should end count as hanging.
_PATIENCE = 1800
_HEADINGS = ("strategy", "interruption", "steps made", "exit codes", "goes on after step", "losses compared", "equal")


@dataclass(frozen=True)
class Interruption:
    """A way to cut a run off.

    Args:
        name: for the table.
        signal: what is sent; `None` where the disk becomes full.
        to: which processes get it.
        step: after how many steps.
    """

    name: str
    signal: signal.Signals | None
    to: tuple[int, ...]
    step: int

    def callbacks(self) -> list[dict[str, Any]]:
        """What has to be in the configuration."""
        return [] if self.signal else [item("tests.lifecycle.crashes.FullDiskAtBatch", batch=self.step)]


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        strategy: how the processes shared the work.
        interruption: what cut it off.
        made: steps that were logged then.
        exit_codes: of the processes; negative for a signal.
        saved: steps that the checkpoint has seen, from which the run went on.
        compared: losses after that.
        equal: whether they are those of the uninterrupted run.
    """

    strategy: str
    interruption: str
    made: int
    exit_codes: tuple[int, ...]
    saved: int
    compared: int
    equal: bool

    def row(self) -> str:
        """A line of a Markdown table."""
        codes = " and ".join(map(str, self.exit_codes))
        cells = (self.strategy, self.interruption, self.made, codes, self.saved, self.compared)
        return f"| {' | '.join(map(str, cells))} | {'yes' if self.equal else 'NO'} |"


class Trial:
    """Runs under one strategy.

    Args:
        world: model and data.
        strategy: see `under`.
        folder: for everything that is written.
        steps: how many a whole run makes.
    """

    def __init__(self, world: TinyWorld, strategy: str, folder: Path, steps: int = STEPS) -> None:
        self._world, self._strategy, self._folder, self._steps = world, strategy, folder, steps
        self._processes = _forkserver()
        self._whole: dict[int, tuple[str, ...]] = {}
        self._interrupted = 0

    def survive(self, interruption: Interruption) -> Outcome:
        """Cut a run off, go on, and compare with the run that nothing cuts off.

        Args:
            interruption: the way.
        """
        self._whole = self._whole or self._finish("whole")
        self._interrupted += 1
        name = f"interrupted{self._interrupted}"
        started = self._start(name, interruption.callbacks())
        self._wait_for(name, interruption, started)
        made = len(losses(self._folder / name))
        if interruption.signal:
            for rank in interruption.to:
                os.kill(started[rank].pid or 0, interruption.signal)
        codes = self._exit_codes(name, started)
        made = max(made, len(losses(self._folder / name)))
        saved = saved_steps(self._folder / name)
        later = {step: values for step, values in self._finish(name, "--ckpt_path=last").items() if step >= saved}
        wanted = {step: values for step, values in self._whole.items() if step >= saved}
        return Outcome(self._strategy, interruption.name, made, codes, saved, len(wanted), later == wanted)

    def _wait_for(self, name: str, interruption: Interruption, started: Sequence[BaseProcess]) -> None:
        """Until it is time, or the processes ended by themselves."""
        while interruption.signal and len(losses(self._folder / name)) < interruption.step:
            if not all(process.is_alive() for process in started):
                raise RuntimeError(f"a process ended too early: {self._output(name, 0).read_text()[-3000:]}")
            time.sleep(0.01)

    def _exit_codes(self, name: str, started: Sequence[BaseProcess]) -> tuple[int, ...]:
        """Wait for the end of all processes."""
        for rank, process in enumerate(started):
            process.join(_PATIENCE)
            if process.is_alive():
                raise RuntimeError(f"process {rank} hangs: {self._output(name, rank).read_text()[-3000:]}")
        return tuple(process.exitcode or 0 for process in started)

    def _finish(self, name: str, *more: str) -> dict[int, tuple[str, ...]]:
        """Let a run end by itself. Returns its losses."""
        codes = self._exit_codes(name, self._start(name, [], *more))
        if any(codes):
            raise RuntimeError(f"exit codes {codes}: {self._output(name, 0).read_text()[-3000:]}")
        return losses(self._folder / name)

    def _start(self, name: str, callbacks: Sequence[Any], *more: str) -> list[BaseProcess]:
        saved = {"filename": "last", "enable_version_counter": False, "every_n_train_steps": SAVED_EVERY}
        checkpoints = item("lightning.pytorch.callbacks.ModelCheckpoint", **saved)
        listed = json.dumps([checkpoints, item("callbacks.SaveOnSigterm"), *callbacks])
        settings = ["--trainer.limit_val_batches=0", "--data.episodes_per_batch=2", "--data.other_targets=0.5"]
        settings += [f"--trainer.max_steps={self._steps}", f"--trainer.callbacks={listed}"]
        arguments = self._world.arguments("fit", self._folder / name, *settings, *under(self._strategy), *more)
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        started = [
            self._processes.Process(target=_train, args=(rank, port, arguments, self._output(name, rank)), daemon=True)
            for rank in range(PROCESSES)
        ]
        for process in started:
            process.start()
        return list(started)

    def _output(self, name: str, rank: int) -> Path:
        return self._folder / f"{name}-{rank}.txt"


def _forkserver() -> ForkServerContext:
    """Makes processes that have everything imported: that takes far longer than a tiny run."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["train", "deepspeed"])
    return processes


def _train(rank: int, port: int, arguments: Sequence[str], output: Path) -> None:
    """One of the processes, as a cluster would start it."""
    place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(PROCESSES)}
    os.environ.update(place, MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *arguments]
    sys.exit(command_line())


def losses(root: Path) -> dict[int, tuple[str, ...]]:
    """The losses that the newest run below `root` has logged by step, as text: every digit counts."""
    paths = sorted(root.glob("*/metrics.csv"))
    if not paths:
        return {}
    with paths[-1].open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total_loss")]
    return {
        int(row["step"]): tuple(row[name] or "" for name in sorted(row) if name.startswith("train/")) for row in rows
    }


def saved_steps(root: Path) -> int:
    """How many steps the checkpoint that `--ckpt_path last` finds below `root` has seen."""
    (path,) = root.glob("*/checkpoints/last.ckpt")
    return int(torch.load(path, weights_only=True)["global_step"])


def interruptions(chance: random.Random) -> list[Interruption]:
    """All ways, at random steps that have a checkpoint behind them and some more before them."""
    steps = range(SAVED_EVERY + 1, STEPS - 2)
    kills = [Interruption("kill -9 of both", signal.SIGKILL, (0, 1), step) for step in chance.sample(steps, KILLS)]
    return [
        *kills,
        Interruption("kill -9 of one", signal.SIGKILL, (1,), chance.choice(steps)),
        Interruption("SIGTERM to one", signal.SIGTERM, (1,), chance.choice(steps)),
        Interruption("disk full", None, (), chance.choice(steps)),
    ]


def table(rows: Sequence[str]) -> str:
    """Rows under their headings, in Markdown."""
    lines = [f"| {' | '.join(_HEADINGS)} |", "|---|---|" + "--:|" * (len(_HEADINGS) - 3) + "---|"]
    return "\n".join([*lines, *rows]) + "\n"


def write_into(page: Path, outcomes: Sequence[Outcome]) -> None:
    """Put the outcomes into the table of a page, in the place of older ones of the same strategies."""
    text = page.read_text(encoding="utf-8")
    found = _MARKS.search(text)
    if found is None:
        raise UsageError(f"{page} has no place for the table: write <!-- interruptions --> and <!-- /interruptions -->")
    rows: dict[str, list[str]] = {strategy: [] for strategy in STRATEGIES}
    for outcome in outcomes:
        rows[outcome.strategy].append(outcome.row())
    for strategy, own in rows.items():
        own[:] = own or [line for line in found[0].splitlines() if line.startswith(f"| {strategy} |")]
    shown = table([row for own in rows.values() for row in own])
    page.write_text(text[: found.start()] + shown + text[found.end() :], encoding="utf-8")


def make_world(folder: Path) -> TinyWorld:
    """The tiny world of the tests."""
    world = TinyWorld(write_model(folder / "model"), write_splits(folder / "data"))
    write_tokenizer(world.model)
    write_encoder(folder / "encoder")
    return world


def main() -> None:
    """Try everything, print the table, and put it into the page."""
    parser = argparse.ArgumentParser(description="Interruptions of runs of two processes, and what is lost.")
    parser.add_argument("--seed", type=int, default=0, help="chooses the steps")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES, help="which strategies")
    parser.add_argument("--into", type=Path, help="page to write the table into")
    options = parser.parse_args()
    chance, outcomes = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        for strategy in options.strategies:
            trial = Trial(world, strategy, Path(folder) / strategy)
            for interruption in interruptions(chance):
                outcomes.append(trial.survive(interruption))
                print(outcomes[-1].row(), flush=True)  # noqa: T201 - a command's output
    print(table([outcome.row() for outcome in outcomes]))  # noqa: T201 - likewise
    if options.into:
        write_into(options.into, outcomes)
    sys.exit(any(not outcome.equal for outcome in outcomes))


if __name__ == "__main__":
    main()
