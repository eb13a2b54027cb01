"""The benchmarks on a tiny random model: what they report hangs together. No test looks at how long anything takes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks import application, training_run, training_step
from benchmarks.floor import floor_operations
from benchmarks.measure import PhaseClock, UnitPass, cpu_seconds, quartiles
from benchmarks.setting import Setting
from benchmarks.throughput import Throughput, measure_throughput
from benchmarks.training_run import TrainingRun, measure_training
from editors.base_models.loading import load_base_model, weights_hash
from editors.common.phases import heard_by, phase
from editors.texts.requests import EditRequest
from tests.tiny_world import write_model, write_tokenizer

EPISODES, STEPS, WARMUP = 3, 4, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("bench_model"), max_position_embeddings=256)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def setting(model: Path, zsre: Path) -> Setting:
    return Setting(str(model), rank=8, num_blocks=2, path=str(zsre))


@pytest.fixture(scope="module")
def run(setting: Setting) -> TrainingRun:
    return measure_training(setting, EPISODES, STEPS, WARMUP)


@pytest.fixture(scope="module")
def applied(setting: Setting) -> application.Application:
    return application.measure_application(setting, requests=3, together=6)


def options(setting: Setting) -> list[str]:
    """The command-line options for `setting`."""
    values = {"base-model": setting.base_model, "rank": 8, "num-blocks": 2, "path": setting.path, "threads": 1}
    return [f"--{name}={value}" for name, value in values.items()]


def printed(table: Table) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# --- measuring -------------------------------------------------------------------------------------------------------


def burn(seconds: float = 0.02) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_an_inner_phase_is_not_charged_to_the_outer_one() -> None:
    clock = PhaseClock({"first": "outer", "second": "inner"})

    def work() -> None:
        with phase("first"):
            burn()
            with phase("second"), phase("not charged apart"):
                burn()

    with heard_by(clock.charging):
        clock.enter("rest")
        total = cpu_seconds(work)
        seconds = clock.take()
    assert list(seconds) == ["rest", "outer", "inner"]
    assert seconds["outer"] == pytest.approx(seconds["inner"], rel=0.5)
    assert sum(seconds.values()) == pytest.approx(total, rel=0.2)
    assert clock.take() == {}


def test_quartiles() -> None:
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_a_unit_computes_all_weight_gradients_and_leaves_the_model_frozen(setting: Setting) -> None:
    model = load_base_model(setting.base_model_config())
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen: set[str] = set()
    for parameter in names:
        parameter.register_post_accumulate_grad_hook(lambda computed: seen.add(names[computed]))
    model.requires_grad_(requires_grad=False)
    before = weights_hash(model)
    unit = UnitPass(model, setting.unit_text(setting.data(EPISODES)))
    assert unit() > 0
    assert seen == set(names.values())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert weights_hash(model) == before


@pytest.mark.parametrize("wanted", [1, 14, 1000])
def test_the_text_of_a_unit_is_the_closest_in_length(setting: Setting, wanted: int) -> None:
    data = setting.data(EPISODES)
    texts = [Setting(**{**vars(setting), "unit_tokens": n}).unit_text(data) for n in range(1, 60)]
    text = Setting(**{**vars(setting), "unit_tokens": wanted}).unit_text(data)
    assert abs(len(text) - wanted) == min(abs(len(other) - wanted) for other in texts)


# --- training step ---------------------------------------------------------------------------------------------------


def test_every_timed_step_is_there_and_its_phases_add_up(run: TrainingRun) -> None:
    assert run.episodes == EPISODES
    assert len(run.steps) == STEPS
    for step in run.steps:
        assert set(step.phases) <= set(training_run.PHASES)
        assert sum(step.phases.values()) == pytest.approx(step.cpu, rel=0.05)
        for name in ("prefix", "capture", "transform", "edited forward", "backward", "optimizer"):
            assert step.phases[name] > 0, name


def test_ratios_and_shares_make_sense(run: TrainingRun) -> None:
    assert all(step.unit > 0 and step.wall > 0 for step in run.steps)
    assert all(ratio > 0 for ratio in run.units_per_edit())
    assert sum(sum(run.units_per_edit(phase)) for phase in training_run.PHASES) == pytest.approx(
        sum(run.units_per_edit()), rel=0.05
    )
    assert run.edits_per_second() > 0
    assert 0 <= run.padding_share() < 1
    assert 0 <= run.prefix_padding_share() < 1
    assert run.prefix_passes() >= 1


def test_tokens_are_counted(run: TrainingRun) -> None:
    for step in run.steps:
        assert 0 < step.real_tokens <= step.padded_tokens
        assert 0 < step.read_tokens <= min(step.real_tokens, step.prefix_tokens)


def test_with_a_warm_cache_no_prefix_is_computed(setting: Setting) -> None:
    run = measure_training(setting, EPISODES, 2, 1, warm=True)
    assert [(step.prefix_tokens, step.prefix_passes) for step in run.steps] == [(0, 0)] * 2
    assert run.prefix_padding_share() == 0


def test_the_floor_counts_forward_and_backward_but_no_prefix(setting: Setting, run: TrainingRun) -> None:
    assert run.floor > 0
    editor, data = setting.editor(), setting.data(1)
    batch = data.train_dataloader().dataset[(0, [[0]])]
    shallow = floor_operations(editor, [batch])
    deeper = Setting(**{**vars(setting), "num_blocks": 4}).editor()
    assert shallow < floor_operations(deeper, [batch])
    assert floor_operations(editor, [batch, batch]) == shallow


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_the_peak_is_not_below_what_is_loaded(run: TrainingRun) -> None:
    assert 0 < run.loaded <= run.peak <= run.process_peak


def test_the_tables_and_the_summary_hold_every_phase(run: TrainingRun) -> None:
    table = printed(training_step.time_table([run, run], 1920))
    assert all(f"{phase}, units" in table for phase in training_run.PHASES)
    assert "peak above loaded" in printed(training_step.memory_table([run, run]))
    summary = training_step.summary(run)
    assert set(summary["phases_units_per_edit"]) == set(training_run.PHASES)
    json.dumps(summary)


@pytest.mark.slow
def test_the_training_benchmark_runs_from_the_command_line(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "training.json"
    sizes = ["--episodes", "1", "2", "--steps=2", "--warmup=1", f"--output={output}"]
    training_step.main([*options(setting), *sizes])
    written = json.loads(output.read_text())
    measured = [(run["episodes"], run["warm"], len(run["steps"])) for run in written["runs"]]
    assert measured == [(1, False, 2), (1, True, 2), (2, False, 2), (2, True, 2)]
    assert written["setting"]["rank"] == 8
    assert "One training edit" in capsys.readouterr().out


# --- application -----------------------------------------------------------------------------------------------------


def test_every_request_is_measured_and_its_phases_add_up(applied: application.Application) -> None:
    assert len(applied.edit) == len(applied.unit) == len(applied.tokens) == len(applied.generation) == 3
    for index, total in enumerate(applied.edit):
        assert sum(seconds[index] for seconds in applied.phases.values()) == pytest.approx(total)
        assert all(applied.phases[phase][index] > 0 for phase in application.PHASES)


def test_ratios_of_application_are_positive(applied: application.Application) -> None:
    assert all(ratio > 0 for ratio in applied.units() + applied.generation_ratio())
    assert applied.weights_check > 0
    assert applied.first_edit > 0


def test_one_call_makes_all_edits_and_each_is_made_alone_once() -> None:
    calls: list[list[str]] = []

    def edit_each(requests: Sequence[EditRequest]) -> None:
        calls.append([request.prompt + request.target for request in requests])

    result = measure_throughput(edit_each, [EditRequest(prompt, prompt.lower()) for prompt in "ABCDE"], lambda: 2.0)
    one_prompt = ["Aa", "Ab", "Ac", "Ad", "Ae"]
    assert calls == [["Aa"], ["Bb"], ["Aa", "Bb", "Cc", "Dd", "Ee"], one_prompt, ["Cc"], ["Dd"], ["Ee"]]
    assert (result.edits, result.unit) == (5, 2.0)


def test_throughput_is_compared_with_separate_calls() -> None:
    many = Throughput(edits=10, separate=8.0, together=2.0, one_prompt=1.0, wall=4.0, unit=0.5)
    assert (many.ratio(), many.units_per_edit(), many.edits_per_second()) == (0.25, 0.4, 2.5)
    assert many.units_per_edit_of_one_prompt() == 0.2


def test_throughput_of_real_edits(applied: application.Application) -> None:
    assert applied.throughput is not None
    assert applied.throughput.edits == 6
    assert min(applied.throughput.together, applied.throughput.separate) > 0
    assert "an edit of 6 in one call" in printed(application.result_table(applied))


def test_application_from_the_command_line_on_built_in_facts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "application.json"
    application.main(
        [f"--base-model={model}", "--rank=8", "--num-blocks=2", "--requests=2", "--together=4", f"--output={output}"]
    )
    written = json.loads(output.read_text())["application"]
    assert written["units_per_edit"] > 0
    assert written["throughput"]["edits"] == 4
    assert len(written["edited_generation"]) == 2
    assert "weights check" in capsys.readouterr().out
