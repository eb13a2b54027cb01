"""Every editor under every strategy: two processes find what one process finds with the same global batch."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from editors.base_models.loading import BaseModelConfig, load_base_model, weights_hash
from tests.distributed.pair import STRATEGIES, item, pair, under
from tests.tiny_world import TinyWorld, run, write_splits

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS, HALF = 6, 3
EDITORS = ("ke", "mend", "serac")
CLIPPED = ("ddp", "zero2", "zero3")
HALF_PRECISION = ("bfloat16", "float16")

_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
CALLBACKS = [
    item(_CHECKPOINT, filename="last", enable_version_counter=False),
    item("callbacks.Watchdog"),
    item("callbacks.ResultsFile"),
    item("callbacks.MemoryReport"),
    item("callbacks.ExportArtifact"),
]


@dataclass(frozen=True)
class Runs:
    """Finished trainings.

    Args:
        folder: holds a root for each.
        model: the base model.
    """

    folder: Path
    model: Path

    def root(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str) -> Path:
        """The newest run below a root."""
        return max(self.root(name).iterdir())

    def losses(self, name: str) -> list[float]:
        """The total loss of each step, over all runs below a root."""
        found: dict[int, float] = {}
        for path in sorted(self.root(name).glob("*/metrics.csv")):
            with path.open() as file:
                rows = [row for row in csv.DictReader(file) if row["train/total_loss"]]
            found |= {int(row["step"]): float(row["train/total_loss"]) for row in rows}
        return [loss for _, loss in sorted(found.items())]

    def held(self, name: str) -> Any:
        """What each process holds."""
        return json.loads((self.run(name) / "results/memory.json").read_text())

    def results(self, name: str) -> Any:
        return json.loads((self.run(name) / "results/metrics.json").read_text())

    def checkpoint(self, name: str) -> Path:
        return self.run(name) / "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def runs(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Trainings of every editor, alone and in pairs, and trainings that go on under other strategies.

    "chain" is ZeRO-3 in two processes, then one process, then ZeRO-2 in two.
    """
    world = TinyWorld(tiny_world.model, uneven_data(tmp_path_factory.mktemp("uneven")))
    found = Runs(tmp_path_factory.mktemp("strategies"), tiny_world.model)

    def arguments(name: str, editor: str, episodes: int, callbacks: list[Any], *more: str) -> list[str]:
        # Five validation records: the processes get different numbers of them.
        common = [
            "--data.limit_val=5",
            f"--data.episodes_per_batch={episodes}",
            "--model.training.lr_schedule=constant",
        ]
        steps = [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={HALF}"]
        listed = f"--trainer.callbacks={json.dumps([*CALLBACKS, *callbacks])}"
        return world.arguments("fit", found.root(name), *common, *steps, listed, *more, editor=editor)

    def alone(name: str, editor: str, *more: str) -> None:
        run(arguments(name, editor, 4, [], *more))

    def together(name: str, editor: str, strategy: str, *more: str, callbacks: Sequence[Any] = ()) -> list[str]:
        return arguments(name, editor, 2, list(callbacks), *under(strategy), *more)

    half, last = f"--trainer.max_steps={HALF}", "--ckpt_path=last"
    generate = "--model.training.generate_in_validation=true"
    pairs = [together(f"{editor}-{strategy}", editor, strategy) for editor in EDITORS for strategy in STRATEGIES]
    pairs += [
        together("chain", "ke", "zero3", *until(1)),
        together("one-to-zero3", "mend", "zero3", last, generate, callbacks=[item("callbacks.ExampleTable", count=1)]),
        together("zero3-to-zero2", "serac", "zero3", half),
        together("zero3-to-zero2", "serac", "zero2", last),
        together("crash", "mend", "zero3", callbacks=[item("tests.lifecycle.crashes.CrashAtBatch", batch=HALF + 1)]),
        together("crash", "mend", "zero3", last),
    ]
    pairs += [
        together(f"{dtype}-{name}", "mend", name, half, f"--model.base_model.dtype={dtype}")
        for dtype in HALF_PRECISION
        for name in ("zero2", "zero3")
    ]
    # So low that every step is clipped.
    clipped = ("--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.01")
    pairs += [together(f"clipped-{name}", "mend", name, *clipped) for name in CLIPPED]
    mixture = "--model.objective=mixture"
    pairs.append(together("mixture-zero3", "serac", "zero3", mixture))
    pairs.append(together("forgetful-zero3", "mend", "zero3", "--trainer.strategy.init_args.live_elements=0"))
    alone("one-to-zero3", "mend", half)
    with pair(found.folder / "output", pairs):
        alone("mend-one", "mend", generate)
        alone("ke-one", "ke")
        alone("serac-one", "serac")
        alone("mixture-one", "serac", mixture)
        alone("clipped-one", "mend", *clipped)
    alone("chain", "ke", *until(2), last)
    with pair(found.folder / "last_output", [together("chain", "ke", "zero2", *until(3), last)]):
        pass
    return found


def until(third: int) -> tuple[str, str]:
    """Arguments for a training that ends after so many thirds of the steps."""
    return f"--trainer.max_steps={third * STEPS // 3}", f"--trainer.val_check_interval={STEPS // 3}"


def uneven_data(folder: Path) -> Path:
    """Data of which one validation record has a question that the others lack."""
    path = write_splits(folder) / "val.json"
    rows = json.loads(path.read_text())
    rows[0]["portability"] = {"New Question": "Where is the seat of its court?", "New Answer": "Osten"}
    path.write_text(json.dumps(rows))
    return folder


@pytest.fixture(params=[f"{editor}-{strategy}" for editor in EDITORS for strategy in STRATEGIES])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reference(name: str) -> str:
    return f"{name.split('-', maxsplit=1)[0]}-one"


def test_losses_are_those_of_one_process(runs: Runs, name: str) -> None:
    assert len(runs.losses(name)) == STEPS
    assert runs.losses(name) == pytest.approx(runs.losses(reference(name)), rel=1e-6, abs=1e-6)


def test_losses_of_seracs_other_objective_are_those_of_one_process(runs: Runs) -> None:
    assert runs.losses("mixture-zero3") == pytest.approx(runs.losses("mixture-one"), rel=1e-6, abs=1e-6)


def test_losses_are_the_same_where_nothing_stays_gathered(runs: Runs) -> None:
    assert runs.losses("forgetful-zero3") == pytest.approx(runs.losses("mend-one"), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("strategy", CLIPPED)
def test_accumulated_and_clipped_gradients_are_those_of_one_process(runs: Runs, strategy: str) -> None:
    assert len(runs.losses("clipped-one")) == STEPS
    assert runs.losses(f"clipped-{strategy}") == pytest.approx(runs.losses("clipped-one"), rel=1e-6, abs=1e-6)


def test_metrics_are_those_of_one_process(runs: Runs, name: str) -> None:
    assert_equal_metrics(runs, name)


def test_generation_in_step_gives_the_answers_of_one_process(runs: Runs) -> None:
    assert "portability_Reasoning/generated/exact_match" in runs.results("one-to-zero3")["metrics"]
    assert_equal_metrics(runs, "one-to-zero3", "mend-one")
    examples = json.loads((runs.run("one-to-zero3") / "results/examples.json").read_text())
    assert [example["kind"] for example in examples] == ["edit", "paraphrase", "neighbour"]


def assert_equal_metrics(runs: Runs, name: str, other: str | None = None) -> None:
    found, wanted = (runs.results(n)["metrics"] for n in (name, other or reference(name)))
    assert "portability_Reasoning/teacher_forced/exact_match" in found
    assert found == pytest.approx({key: wanted[key] for key in found}, abs=1e-5)


def test_base_weights_are_named_as_they_are(runs: Runs, name: str) -> None:
    model = load_base_model(BaseModelConfig(str(runs.model), dtype="float32"))
    assert runs.results(name)["base_weights"] == weights_hash(model, torch.bfloat16)


def test_the_exported_editor_is_the_checkpoints(runs: Runs, name: str) -> None:
    state = torch.load(runs.checkpoint(name), weights_only=True)["state_dict"]
    wanted = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    found = load_file(runs.run(name) / "artifact/model.safetensors")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_checkpoints_hold_the_editor_only(runs: Runs, name: str) -> None:
    found, wanted = (torch.load(runs.checkpoint(n), weights_only=True) for n in (name, reference(name)))
    assert shapes(found["state_dict"]) == shapes(wanted["state_dict"])
    assert shapes(found["optimizer_states"]) == shapes(wanted["optimizer_states"])
    tensors = elements(found["state_dict"]) + elements(found["optimizer_states"])
    # Of so small an editor the names of its tensors and the trainer's state take most of the file.
    overhead = runs.checkpoint(reference(name)).stat().st_size - 4 * tensors
    assert runs.checkpoint(name).stat().st_size <= 1.05 * 4 * tensors + overhead


def shapes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shapes(item) for item in value]
    return value.shape if isinstance(value, torch.Tensor) else type(value)


def elements(value: Any) -> int:
    if isinstance(value, dict | list | tuple):
        return sum(map(elements, value.values() if isinstance(value, dict) else value))
    return value.numel() if isinstance(value, torch.Tensor) else 0


def test_zero3_shards_base_model_and_editor(runs: Runs, name: str) -> None:
    share = 0.5 if name.endswith("zero3") else 1.0
    assert_held(runs, name, 4 * share, 4 * share)


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_a_base_model_in_half_precision_stays_so_beside_an_editor_in_float32(runs: Runs, dtype: str) -> None:
    for strategy, share in (("zero2", 1), ("zero3", 0.5)):
        assert_held(runs, f"{dtype}-{strategy}", 2 * share, 4 * share)
    assert len(runs.losses(f"{dtype}-zero3")) == HALF
    assert runs.losses(f"{dtype}-zero3") == pytest.approx(runs.losses(f"{dtype}-zero2"), abs=1e-3)


def assert_held(runs: Runs, name: str, base: float, network: float) -> None:
    """Assert that each process holds so many bytes for each number."""
    (whole,) = runs.held("mend-one" if name.startswith(HALF_PRECISION) else reference(name))
    assert [held["process"] for held in runs.held(name)] == [0, 1]
    for held in runs.held(name):
        assert held["base_bytes"] == pytest.approx(base * whole["base_parameters"], rel=0.01)
        assert held["editor_bytes"] == pytest.approx(network * whole["editor_parameters"], rel=0.05)


@pytest.mark.parametrize(
    ("name", "other", "parts"), [("chain", "ke", 3), ("one-to-zero3", "mend", 2), ("zero3-to-zero2", "serac", 2)]
)
def test_a_run_goes_on_under_another_strategy(runs: Runs, name: str, other: str, parts: int) -> None:
    assert len(list(runs.root(name).iterdir())) == parts
    assert runs.losses(name) == pytest.approx(runs.losses(f"{other}-one"), rel=1e-6, abs=1e-6)


def test_a_crashed_run_goes_on_exactly(runs: Runs) -> None:
    assert len(list(runs.root("crash").iterdir())) == 2
    assert runs.losses("crash")[HALF:] == runs.losses("mend-zero3")[HALF:]
