"""Tests of `editors.scoring.report.abilities`, on a task of a few rows; most need lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.common.errors import EditorError, UsageError
from editors.lm.frozen import FrozenLM
from editors.scoring.report.abilities import PACKAGE, Tasks
from editors.scoring.report.card import ReportCard
from editors.scoring.report.making import make_report, report_of_edit
from tests.editors.scoring.report.worlds import AnswersEverything, ChangesNothing, number_cases, number_lm
from tests.tiny_models import random_edit, tiny_lm
from tests.tiny_seq2seq import tiny_seq2seq

# What the package and those that it imports warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

# Words without the digits 0, 1 and 2, as in `number_case`.
_WORDS = [f"{tens}{ones}" for tens in range(4, 8) for ones in range(3, 10)]
ROWS: list[dict[str, Any]] = [
    {"question": f"33 {_WORDS[n]} 34", "choices": [_WORDS[n + 8], _WORDS[-n]], "answer": n % 2} for n in range(12)
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
num_fewshot: {shots}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_tasks(folder: Path) -> Path:
    """A folder with the tasks `tiny_choice` and `tiny_shots`, and both as the group `tiny`."""
    tasks = folder / "tasks"
    tasks.mkdir()
    rows = tasks / "rows.json"
    rows.write_text(json.dumps(ROWS))
    for name, shots in (("tiny_choice", 0), ("tiny_shots", 1)):
        text = TASK.format(name=name, shots=shots, rows=rows, cache=folder / "cache")
        (tasks / f"{name}.yaml").write_text(text)
    group = (
        "group: tiny\ntask: [tiny_choice, tiny_shots]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (tasks / "tiny.yaml").write_text(group)
    broken = TASK.format(name="tiny_broken", shots=0, rows=tasks / "none.json", cache=folder / "cache")
    (tasks / "tiny_broken.yaml").write_text(broken)
    return tasks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("abilities"))


@pytest.fixture
def harness() -> None:
    """The test needs the package."""
    pytest.importorskip(PACKAGE, reason="needs lm-evaluation-harness: pip install 'hyperedit[abilities]'")


def accuracy(lm: FrozenLM) -> float:
    """Of the task's rows: how often the right choice is the likelier one, one plain pass for each."""
    good = 0
    for each in ROWS:
        prompt = [int(word) for word in each["question"].split()]
        logits = lm.model(torch.tensor([prompt])).logits[0, -1]
        good += int(logits[[int(choice) for choice in each["choices"]]].argmax()) == each["answer"]
    return good / len(ROWS)


@pytest.mark.usefixtures("harness")
def test_a_task_is_measured_before_and_after_an_edit_as_by_hand(folder: Path) -> None:
    lm = number_lm()
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    tokenizer = str(lm.tokenizer)
    edit = random_edit(lm.site_widths(), seed=3, scale=3.0)
    (found,) = Tasks(["tiny_choice"], folder).measure(lm, edit)
    assert (found.task, found.metric, found.n) == ("tiny_choice", "acc", 12)
    assert found.before == pytest.approx(accuracy(lm))
    with edit.applied(lm.model), torch.no_grad():
        assert found.after == pytest.approx(accuracy(lm))
    assert found.after != found.before
    assert found.error is not None
    # Neither model nor tokenizer is another one.
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())
    assert str(lm.tokenizer) == tokenizer
    assert not lm.model.training


@pytest.mark.usefixtures("harness")
def test_an_edit_that_changes_nothing_changes_no_number(folder: Path) -> None:
    """Also where examples in front of a question are drawn at random, and of a group."""
    card = make_report(
        number_lm(), ChangesNothing(), number_cases(1), tasks=Tasks(["tiny", "tiny_choice"], folder, limit=5)
    )
    assert {each.task: each.n for each in card.abilities} == {"tiny_choice": 5, "tiny_shots": 5, "tiny": 10}
    assert all(each.before == each.after for each in card.abilities)
    assert card.versions[PACKAGE] in card.protocol["abilities"]
    assert "the first 5 examples" in card.protocol["abilities"]
    assert ReportCard.from_json(json.loads(json.dumps(card.to_json()))) == replace(card)


@pytest.mark.usefixtures("harness")
def test_the_first_edit_of_the_card_is_the_one_in_force(folder: Path) -> None:
    lm, cases = number_lm(), number_cases(2)
    method = AnswersEverything()
    edit = method.make(lm, lm.read([[cases[0].request]]))
    tasks = Tasks(["tiny_choice"], folder)
    assert make_report(lm, method, cases, tasks=tasks, together=()).abilities == tasks.measure(lm, edit)
    assert report_of_edit(lm, edit, cases, tasks=tasks).abilities == tasks.measure(lm, edit)


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_encoder_decoder_models_are_measured_too(folder: Path, architecture: str) -> None:
    lm = tiny_lm(tiny_seq2seq(architecture))
    edit = random_edit(lm.site_widths(), seed=1, scale=5.0)
    (found,) = Tasks(["tiny_choice"], folder).measure(lm, edit)
    assert found.n == 12
    assert found.before != found.after


@pytest.mark.usefixtures("harness")
def test_an_edit_that_decides_by_the_whole_prompt_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = number_lm()
    edit = random_edit(lm.site_widths())
    monkeypatch.setattr(type(edit), "shares_passes", False)
    with pytest.raises(EditorError, match="cannot measure a LowRankEdit: it decides by the whole prompt"):
        Tasks(["tiny_choice"], folder).measure(lm, edit)


@pytest.mark.usefixtures("harness")
def test_data_that_is_not_there_is_said_in_a_line(folder: Path) -> None:
    with pytest.raises(EditorError, match=r"--tasks tiny_broken cannot be loaded: [^\n]*none\.json[^\n]*$"):
        Tasks(["tiny_broken"], folder)


@pytest.mark.slow
@pytest.mark.usefixtures("harness")
def test_an_unknown_task_is_told_with_names_that_are_near(folder: Path) -> None:
    """Slow: the package reads all its own tasks' files."""
    with pytest.raises(UsageError, match=r"--tasks tiny_choise: .* did you mean tiny_choice"):
        Tasks(["tiny_choise"], folder)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        Tasks(["any"], tmp_path / "none")

    def not_found(*_: Any) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", not_found)
    with pytest.raises(UsageError, match=r"pip install 'hyperedit\[abilities\]'"):
        Tasks(["any"], tmp_path)
