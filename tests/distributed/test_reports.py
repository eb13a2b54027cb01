"""The report card of a test run: two processes that share the base model find what one finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.scoring.report.card import ReportCard
from tests.distributed.pair import pair, under
from tests.tiny_world import TinyWorld, run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CASES = (("mend", "ddp"), ("mend", "zero3"), ("ke", "zero3"), ("serac", "ddp"), ("serac", "zero3"))
_TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")


def card_of(root: Path) -> ReportCard:
    (found,) = root.glob("*/results/report.json")
    return ReportCard.load(found)


def metrics_of(root: Path) -> dict[str, Any]:
    (found,) = root.glob("*/results/metrics.json")
    metrics: dict[str, Any] = json.loads(found.read_text())["metrics"]
    return metrics


@pytest.fixture(scope="module")
def roots(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test runs of each editor under each strategy, and alone, from the checkpoint of one training."""
    folder = tmp_path_factory.mktemp("reports")
    pairs = []
    for editor in dict(CASES):
        tiny_world.run("fit", folder / "fit" / editor, *_TWO_STEPS, editor=editor)
        (checkpoint,) = (folder / "fit" / editor).glob("*/checkpoints/last.ckpt")
        last = f"--ckpt_path={checkpoint}"
        run(tiny_world.arguments("test", folder / f"{editor}-alone", last, editor=editor))
        for strategy in (strategy for own, strategy in CASES if own == editor):
            root = folder / f"{editor}-{strategy}"
            pairs.append(tiny_world.arguments("test", root, *under(strategy), last, editor=editor))
    fit = tiny_world.arguments("fit", folder / "serac-fit", *under("zero3"), *_TWO_STEPS, editor="serac")
    on = tiny_world.arguments(
        "fit", folder / "serac-fit", *under("zero3"), *_TWO_STEPS, "--trainer.max_steps=4", "--ckpt_path=last",
        editor="serac",
    )  # fmt: skip
    with pair(folder / "output", [*pairs, fit, on]):
        pass
    return folder


@pytest.mark.parametrize(("editor", "strategy"), CASES)
def test_the_card_is_that_of_one_process(roots: Path, editor: str, strategy: str) -> None:
    found, alone = card_of(roots / f"{editor}-{strategy}"), card_of(roots / f"{editor}-alone")
    assert (found.base_weights, found.data) == (alone.base_weights, alone.data)
    assert [(row.row, row.n) for row in found.rows] == [(row.row, row.n) for row in alone.rows]
    for row, expected in zip(found.rows, alone.rows, strict=True):
        assert row.after[row.headline].mean == pytest.approx(expected.after[row.headline].mean)


@pytest.mark.parametrize(("editor", "strategy"), CASES)
def test_the_metrics_are_those_of_one_process(roots: Path, editor: str, strategy: str) -> None:
    found, alone = metrics_of(roots / f"{editor}-{strategy}"), metrics_of(roots / f"{editor}-alone")
    assert found == pytest.approx(alone, abs=1e-5)


def test_callbacks_that_answer_after_the_training_of_serac_do_so_where_it_is_sharded_and_resumed(roots: Path) -> None:
    examples = list((roots / "serac-fit").glob("*/results/examples.json"))
    assert len(examples) == 2
    assert all(json.loads(path.read_text()) for path in examples)
