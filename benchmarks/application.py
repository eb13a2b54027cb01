"""What applying a trained editor costs: `python -m benchmarks.application [--path DIR] [--output FILE]`.

First one edit in each call, by phase; then many independent edits in one call, beside a call for each of them, and as
many of one prompt. The artifact is that of an untrained editor: no cost depends on the values of its weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import PhaseClock, UnitPass, cpu_seconds, quartiles, verdict
from benchmarks.setting import Setting, add_options, quieten, save_result, setting_from
from benchmarks.throughput import Throughput, measure_throughput
from callbacks.export import export_artifact
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.common.phases import CAPTURE, HYPERNETWORK, PREFIX, forward_as_phase, heard_by
from editors.edits.protocol import Edit
from editors.texts.batches import encode_answers
from editors.texts.requests import EditRequest

PHASES = ("prefix", "capture", "transform", "other")
_NAMES = {PREFIX: "prefix", CAPTURE: "capture", HYPERNETWORK: "transform"}
_TARGET_UNITS = 0.5
_TARGET_RATIO = 0.6
_NEW_TOKENS = 16


@dataclass
class Application:
    """CPU-seconds; lists have one entry for each request.

    Args:
        weights_check: the check that the model is the right one, once for each model.
        first_edit: the first edit after it.
        tokens: length of each request's text.
        unit: a unit on that text.
        edit: making the edit.
        phases: the parts of making the edit.
        generation: generating tokens without the edit.
        edited_generation: generating as many with the edit.
        throughput: many edits in one call.
    """

    weights_check: float = 0.0
    first_edit: float = 0.0
    tokens: list[int] = field(default_factory=list)
    unit: list[float] = field(default_factory=list)
    edit: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})
    generation: list[float] = field(default_factory=list)
    edited_generation: list[float] = field(default_factory=list)
    throughput: Throughput | None = None

    def units(self, phase: str | None = None) -> list[float]:
        """For each request the cost of its edit, or of one phase, in units on the same text."""
        return [cost / unit for cost, unit in zip(self.phases[phase] if phase else self.edit, self.unit, strict=True)]

    def generation_ratio(self) -> list[float]:
        """For each request the cost of edited generation over that of base generation."""
        return [edited / base for edited, base in zip(self.edited_generation, self.generation, strict=True)]


def measure_application(setting: Setting, requests: int, together: int) -> Application:
    """Export an editor, load it, and apply it to test records of the data.

    Args:
        setting: what is measured.
        requests: how many edits are made by phase, each on its own.
        together: how many are made in one call.
    """
    quieten()
    editor, data = setting.editor(), setting.data(episodes=1)
    records = data.records["test"] or data.records["train"]
    wanted = [EditRequest(record.prompt, record.target_new) for record in records[: max(requests + 1, together)]]
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_editor(export_artifact(editor, Path(folder) / "artifact", {}))
    bench = _Bench(loaded, editor.lm.model, data.tokenizer)
    result = bench.run(wanted[: requests + 1])
    result.throughput = bench.throughput(wanted[:together], UnitPass(editor.lm.model, setting.unit_text(data)))
    return result


class _Bench:
    """A loaded editor beside its base model."""

    def __init__(self, loaded: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._loaded = loaded
        self._model = model
        self._tokenizer = tokenizer
        self._clock = PhaseClock(_NAMES)

    def run(self, requests: Sequence[EditRequest]) -> Application:
        """Measure everything; the first request warms up."""
        result = Application(weights_check=cpu_seconds(lambda: self._loaded.check_base_model(self._model)))
        result.first_edit = sum(self._edit(requests[0])[1].values())
        self._measure(requests[0], Application())
        for request in requests[1:]:
            self._measure(request, result)
        return result

    def throughput(self, requests: Sequence[EditRequest], unit: UnitPass) -> Throughput:
        """Many edits in one call, and a call for each."""
        edit_each = partial(self._loaded.edit_each, self._model, self._tokenizer)
        return measure_throughput(edit_each, requests, unit)

    def _measure(self, request: EditRequest, result: Application) -> None:
        (text,) = encode_answers(self._tokenizer, [(request.prompt, request.target)])
        unit = UnitPass(self._model, text)
        before = unit()
        edit, phases = self._edit(request)
        result.unit.append((before + unit()) / 2)
        result.tokens.append(len(text))
        result.edit.append(sum(phases.values()))
        for phase in PHASES:
            result.phases[phase].append(phases.get(phase, 0.0))
        prompt = torch.tensor([text.ids[: text.answer_start]], device=self._model.device)
        result.generation.append(self._generation(prompt))
        with edit.applied(self._model):
            result.edited_generation.append(self._generation(prompt))

    def _edit(self, request: EditRequest) -> tuple[Edit, dict[str, float]]:
        """The edit, and the CPU-seconds of its phases."""
        with heard_by(self._clock.charging), forward_as_phase(self._loaded.network, HYPERNETWORK):
            self._clock.enter("other")
            edit = self._loaded.edit(self._model, self._tokenizer, [request])
            return edit, self._clock.take()

    def _generation(self, prompt: torch.Tensor) -> float:
        """CPU-seconds of greedily generating `_NEW_TOKENS` tokens."""
        settings = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False}
        pad, mask = self._tokenizer.pad_token_id, torch.ones_like(prompt)
        generator: Any = self._model  # mypy takes the mixin's method for a tensor
        return cpu_seconds(lambda: generator.generate(prompt, attention_mask=mask, pad_token_id=pad, **settings))


def result_table(result: Application) -> Table:
    """Medians and quartiles over the requests."""
    table = Table(title=f"Applying an edit ({min(result.tokens)} to {max(result.tokens)} tokens)")
    for name in ("", "median", "quartiles"):
        table.add_column(name, justify="left" if not name else "right")
    for phase in PHASES:
        _row(table, f"{phase}, units", result.units(phase))
    table.add_section()
    _row(table, "one edit, units", result.units())
    table.add_row(f"at most {_TARGET_UNITS}?", verdict(True, quartiles(result.units())[1] <= _TARGET_UNITS), "")
    _row(table, "one edit, CPU-seconds", result.edit)
    _row(table, "a unit, CPU-seconds", result.unit)
    _add_throughput(table, result.throughput)
    table.add_section()
    _row(table, f"{_NEW_TOKENS} tokens, CPU-seconds", result.generation)
    _row(table, "the same, edited / base", result.generation_ratio())
    table.add_section()
    _row(table, "weights check, CPU-seconds (once)", [result.weights_check])
    return table


def _add_throughput(table: Table, many: Throughput | None) -> None:
    if many is None:
        return
    table.add_section()
    _row(table, f"an edit of {many.edits} in one call, units", [many.units_per_edit()])
    _row(table, "the same, if all are of one prompt", [many.units_per_edit_of_one_prompt()])
    _row(table, "one call / a call for each", [many.ratio()])
    table.add_row(f"at most {_TARGET_RATIO}?", verdict(True, many.ratio() <= _TARGET_RATIO), "")
    _row(table, "edits in a second", [many.edits_per_second()])


def _row(table: Table, name: str, values: Sequence[float]) -> None:
    first, median, third = quartiles(values)
    table.add_row(name, f"{median:.3f}", f"{first:.3f}-{third:.3f}" if len(values) > 1 else "")


def summary(result: Application) -> dict[str, Any]:
    """The result as plain values, its medians first."""
    return {
        "units_per_edit": quartiles(result.units())[1],
        "phases_units_per_edit": {phase: quartiles(result.units(phase))[1] for phase in PHASES},
        "edited_over_base_generation": quartiles(result.generation_ratio())[1],
        "one_call_over_separate_calls": result.throughput and result.throughput.ratio(),
        **asdict(result),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the file."""
    parser = argparse.ArgumentParser(description="What applying a trained editor costs.")
    parser.add_argument("--requests", type=int, default=12, help="how many edits are made, each on its own")
    parser.add_argument("--together", type=int, default=100, help="how many edits are made in one call; 2 or more")
    add_options(parser)
    options = parser.parse_args(arguments)
    setting, console = setting_from(options), Console()
    with console.status(f"{options.requests} edits, {options.together} in one call"):
        result = measure_application(setting, options.requests, options.together)
    console.print(result_table(result))
    save_result(setting, {"application": summary(result)}, options.output)


if __name__ == "__main__":
    main()
