"""Tests of the results file's table, of the example table, of the plots, of the export and of the run's facts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from callbacks import plots
from callbacks.examples import ExampleTable, example_rows, example_table
from callbacks.export import ExportArtifact
from callbacks.plots import ResultPlot
from callbacks.results import ResultsFile, metrics_table, stage_metrics
from datamodules.base import EditDataModule
from datamodules.records import EditRecord, Probe
from editors.base_models.loading import BaseModelConfig
from editors.lm.ask import ask
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.scoring.names import TOKEN_LEVEL
from editors.training.run.provenance import run_facts
from tests.tiny_world import TinyWorld

TOKEN = "teacher_forced/token_accuracy"
METRICS = {
    f"generality/{TOKEN}": 0.75,
    f"before/generality/{TOKEN}": 0.125,
    f"reliability/{TOKEN}": 1.0,
    "locality/teacher_forced/token_agreement": 0.9,
    f"portability_Reasoning/{TOKEN}": 0.3,
    f"unseen_template/reliability/{TOKEN}": 0.4,
    "loss/total": 1.25,
}


def shown(table: Table) -> str:
    """What a table looks like on a wide screen."""
    screen = io.StringIO()
    Console(file=screen, width=200).print(table)
    return screen.getvalue()


def trainer(folder: Path, **attributes: Any) -> Any:
    """What callbacks read of a trainer."""
    metrics = {f"val/{name}": torch.tensor(value) for name, value in METRICS.items()}
    defaults = {
        "ckpt_path": None,
        "callback_metrics": {**metrics, "train/edit_loss": torch.tensor(2.0)},
        "default_root_dir": str(folder),
        "global_step": 7,
        "is_global_zero": True,
        "precision": "32-true",
        "sanity_checking": False,
        "world_size": 1,
    }
    return SimpleNamespace(**{**defaults, **attributes})


@pytest.fixture(scope="module")
def editor(tiny_world: TinyWorld) -> MEND:
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    editor = MEND(base, MENDConfig(rank=4, edit_rate=0.05))
    editor.configure_model()
    return editor


# --- results ---------------------------------------------------------------------------------------------------------


def test_stage_metrics_are_those_of_the_stage(tmp_path: Path) -> None:
    assert stage_metrics(trainer(tmp_path), "val") == pytest.approx(METRICS)
    assert stage_metrics(trainer(tmp_path), "test") == {}


def test_table_has_promises_in_order_with_values_before_and_after() -> None:
    lines = [line for line in shown(metrics_table(METRICS, "title")).splitlines() if "teacher_forced" in line]
    assert [line.split()[1] for line in lines] == ["reliability", "generality", "locality", "portability_Reasoning"]
    assert "12.5%" in lines[1]
    assert "75.0%" in lines[1]


def test_results_file_has_metrics_and_facts(tmp_path: Path, editor: MEND) -> None:
    ResultsFile().on_validation_end(trainer(tmp_path), editor)
    results = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert results["metrics"] == pytest.approx(METRICS)
    assert (results["step"], results["precision"], results["processes"]) == (7, "32-true", 1)
    assert (results["checkpoint"], results["split"]) == (None, "val")


@pytest.mark.parametrize("attributes", [{"sanity_checking": True}, {"is_global_zero": False}, {"callback_metrics": {}}])
def test_results_file_is_not_written(tmp_path: Path, editor: MEND, attributes: dict[str, Any]) -> None:
    ResultsFile().on_validation_end(trainer(tmp_path, **attributes), editor)
    assert list(tmp_path.iterdir()) == []


def test_facts_name_model_data_seed_and_versions(tmp_path: Path, editor: MEND, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "11")
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--x"])
    data = SimpleNamespace(data_hash=lambda: {"train": "abc"})
    facts = run_facts(trainer(tmp_path, datamodule=data), editor)
    assert facts["base_model"] == editor.base_model.name
    assert facts["edit_sites"] == editor.lm.sites
    assert (facts["data"], facts["seed"], facts["command"]) == ({"train": "abc"}, "11", "train.py fit --x")
    assert facts["versions"]["torch"] == torch.__version__


# --- examples --------------------------------------------------------------------------------------------------------

RECORD = EditRecord(
    "Who founded Dor?",
    "Anna Weld",
    "Dor",
    rephrases=("By whom was Dor founded?", "never shown"),
    locality=(Probe("nq question: who is it", "nobody"),),
)


def test_examples_ask_edit_paraphrase_and_neighbour(editor: MEND) -> None:
    editor.train()
    rows = example_rows(editor, RECORD)
    assert [(r["kind"], r["question"]) for r in rows] == [
        ("edit", "Who founded Dor?"),
        ("paraphrase", "By whom was Dor founded?"),
        ("neighbour", "nq question: who is it"),
    ]
    assert {r["edit"] for r in rows} == {"Who founded Dor? → Anna Weld"}
    assert any(r["before"] != r["after"] for r in rows)
    assert editor.training
    assert ask(editor.lm.model, editor.tokenizer, [r["question"] for r in rows]) == [r["before"] for r in rows]


def test_examples_gather_no_statistics(editor: MEND) -> None:
    editor.train()
    before = {name: value.clone() for name, value in editor.network.state_dict().items()}
    example_rows(editor, RECORD)
    assert all(torch.equal(value, before[name]) for name, value in editor.network.state_dict().items())


def test_example_table_shows_what_looks_like_markup() -> None:
    row = {"edit": "[/INST] → [x]", "kind": "edit", "question": "[/b]?", "before": "[/INST]", "after": "[red]"}
    text = shown(example_table([row], "title"))
    assert all(part in text for part in ("[/INST] → [x]", "[/b]?", "[red]"))


@pytest.mark.parametrize("first", [True, False])
def test_the_first_of_several_processes_shows_the_examples(
    tmp_path: Path, editor: MEND, tiny_world: TinyWorld, first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = EditDataModule(BaseModelConfig(str(tiny_world.model)), [], [], [])
    data.records = {"val": [RECORD]}
    ExampleTable().on_fit_end(trainer(tmp_path, datamodule=data, world_size=2, is_global_zero=first), editor)
    assert ("Who founded Dor?" in capsys.readouterr().out) == first
    assert (tmp_path / "results" / "examples.json").exists() == first


def test_example_table_needs_records(tmp_path: Path, editor: MEND) -> None:
    ExampleTable().on_fit_end(trainer(tmp_path, datamodule=None), editor)
    assert list(tmp_path.iterdir()) == []


# --- plots -----------------------------------------------------------------------------------------------------------


def drawn(path: Path) -> bool:
    """Whether the picture at `path` shows more than a blank sheet."""
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or []) > 10


def plot_of(losses: int, scores: int) -> ResultPlot:
    plot = ResultPlot(smoothing=3)
    plot.load_state_dict(
        {
            "losses": {name: [(step, 2.0 / (step + 1)) for step in range(losses)] for name in ("edit", "locality")},
            "scores": {"reliability": [(step, 0.5) for step in range(scores)]} if scores else {},
        }
    )
    return plot


@pytest.mark.parametrize("scores", [0, 1, 4])
def test_training_is_drawn(tmp_path: Path, editor: MEND, scores: int) -> None:
    plot_of(12, scores).on_fit_end(trainer(tmp_path), editor)
    assert drawn(tmp_path / "plots" / "training.png")


def test_no_legend_lies_over_a_curve(tmp_path: Path, editor: MEND, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the curves are: the legends are outside of the panels, and inside of the picture."""
    figures: list[Figure] = []

    def kept(figure: Figure, *_: Any) -> None:
        figures.append(figure)

    monkeypatch.setattr(plots, "_save", kept)
    plot = plot_of(12, 0)
    plot.load_state_dict({**plot.state_dict(), "scores": {each: [(0, 0.1), (9, 0.05)] for each in TOKEN_LEVEL}})
    plot.on_fit_end(trainer(tmp_path), editor)
    (figure,) = figures
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        area = legend.get_window_extent()
        assert figure.bbox.contains(area.x0, area.y0)
        assert figure.bbox.contains(area.x1, area.y1)
        assert not any(area.overlaps(other.get_window_extent()) for other in figure.axes)
        assert not area.overlaps(axes.xaxis.label.get_window_extent())


def test_nothing_is_drawn_where_nothing_was_logged(tmp_path: Path, editor: MEND) -> None:
    ResultPlot().on_fit_end(trainer(tmp_path), editor)
    assert list(tmp_path.iterdir()) == []


def test_test_results_are_drawn(tmp_path: Path, editor: MEND) -> None:
    metrics = {f"test/{name}": torch.tensor(value) for name, value in METRICS.items()}
    ResultPlot().on_test_end(trainer(tmp_path, callback_metrics=metrics), editor)
    assert drawn(tmp_path / "plots" / "test.png")


def test_validation_scores_are_kept_for_the_checkpoint(tmp_path: Path, editor: MEND) -> None:
    plot = plot_of(2, 1)
    plot.on_validation_end(trainer(tmp_path), editor)
    resumed = ResultPlot()
    resumed.load_state_dict(plot.state_dict())
    assert resumed.state_dict() == plot.state_dict()
    assert resumed.state_dict()["scores"]["generality"] == [(7, 0.75)]
    assert len(resumed.state_dict()["scores"]["reliability"]) == 2


# --- export ----------------------------------------------------------------------------------------------------------


def exported(folder: Path, editor: MEND, callback: ExportArtifact) -> tuple[Any, str]:
    """The results and the card of the artifact that is written when training ends now."""
    callback.on_fit_end(trainer(folder), editor)
    results = json.loads((folder / "artifact" / "config.json").read_text())["results"]
    return results, (folder / "artifact" / "README.md").read_text()


def test_export_has_the_metrics_of_a_validation_after_the_last_step(tmp_path: Path, editor: MEND) -> None:
    callback = ExportArtifact()
    callback.on_train_batch_start(trainer(tmp_path), editor, None, 6)
    callback.on_validation_end(trainer(tmp_path), editor)
    results, card = exported(tmp_path, editor, callback)
    assert results["metrics"] == pytest.approx(METRICS)
    assert "at training step 7." in card


def test_export_has_no_metrics_of_earlier_weights(tmp_path: Path, editor: MEND) -> None:
    callback = ExportArtifact()
    callback.on_validation_end(trainer(tmp_path), editor)
    callback.on_train_batch_start(trainer(tmp_path), editor, None, 6)
    results, card = exported(tmp_path, editor, callback)
    assert results["metrics"] == {}
    assert "No metrics: these weights (training step 7) were not validated." in card


def test_export_has_no_metrics_of_a_sanity_check(tmp_path: Path, editor: MEND) -> None:
    callback = ExportArtifact()
    callback.on_validation_end(trainer(tmp_path, sanity_checking=True), editor)
    assert exported(tmp_path, editor, callback)[0]["metrics"] == {}
