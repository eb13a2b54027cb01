"""Editors side by side: what their tests found, and what they cost.

    python -m benchmarks.comparison --editor TEST_RUN ARTIFACT --editor TEST_RUN ARTIFACT --path DIR
    python -m benchmarks.comparison … --into FILE --block NAME      replace a block of a Markdown file

Scores come from each test run's `results/metrics.json`. Costs are measured here, each editor in a process of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import cpu_seconds, quartiles
from benchmarks.results_table import read_results, replace_block
from benchmarks.setting import quieten, read_data
from callbacks.memory import peak_bytes, reset_peak, resident_bytes
from editors.artifacts.editor import load_editor
from editors.base_models.loading import BaseModelConfig, load_base_model, load_tokenizer
from editors.common.errors import EditorError
from editors.common.files import save_text
from editors.scoring import names
from editors.scoring.names import before_edit, metric_name, promise_of_kind
from editors.texts.requests import EditRequest

_REASONING = promise_of_kind(names.PORTABILITY, "Reasoning")
_SCORES = {
    **names.TOKEN_LEVEL,
    names.PORTABILITY: metric_name(_REASONING, names.TEACHER_FORCED, names.TOKEN_ACCURACY),
    "generated exact match": metric_name(names.RELIABILITY, names.GENERATED, names.EXACT_MATCH),
    "… of paraphrases": metric_name(names.GENERALITY, names.GENERATED, names.EXACT_MATCH),
}
_COSTS = ("CPU-seconds per edit", "parameters, million", "memory, MB")
_MUST_AGREE = ("base_weights", "split")


@dataclass(frozen=True)
class Cost:
    """What an exported editor costs beside its base model.

    Args:
        seconds: CPU-seconds of making one edit, the median over requests.
        parameters: of the editor; frozen ones (SERAC's scope encoder) count, those of the base model do not.
        memory: most bytes that loading the editor and making edits took beside the base model.
    """

    seconds: float
    parameters: int
    memory: int


def measure_cost(artifact: str, base_model: BaseModelConfig, requests: Sequence[EditRequest], threads: int) -> Cost:
    """Load an editor and make each request by itself; the first one warms up.

    Args:
        artifact: its folder.
        base_model: the model that it edits.
        requests: at least two.
        threads: CPU threads.
    """
    quieten()
    torch.set_num_threads(threads)
    model, tokenizer = load_base_model(base_model), load_tokenizer(base_model)
    reset_peak()
    before = resident_bytes()
    editor = load_editor(artifact)
    seconds = [cpu_seconds(partial(editor.edit, model, tokenizer, [request])) for request in requests]
    parameters = sum(parameter.numel() for parameter in editor.network.parameters())
    return Cost(quartiles(seconds[1:])[1], parameters, peak_bytes() - before)


def check_comparable(results: Sequence[Mapping[str, Any]]) -> None:
    """Check that all results are of one base model and one test set.

    Raises:
        EditorError: they are not.
    """
    for other in results[1:]:
        for key in _MUST_AGREE:
            if other.get(key) != results[0].get(key):
                raise EditorError(f"the runs differ in {key}: {results[0].get(key)} and {other.get(key)}")
        hashes = [result["data"]["test"] for result in (results[0], other)]
        if hashes[0] != hashes[1]:
            raise EditorError(f"the runs have other test data: {hashes[0][:16]} and {hashes[1][:16]}")


def comparison_table(editors: Sequence[str], results: Sequence[Mapping[str, Any]], costs: Sequence[Cost]) -> str:
    """One row for each editor, and one for the unedited model."""
    head = ["editor", *_SCORES, *_COSTS]
    unedited = [_percent(results[0]["metrics"].get(before_edit(metric))) for metric in _SCORES.values()]
    rows = [["none", *unedited, "", "", ""]]
    for name, result, cost in zip(editors, results, costs, strict=True):
        scores = [_percent(result["metrics"].get(metric)) for metric in _SCORES.values()]
        sizes = [f"{cost.seconds:.2f}", f"{cost.parameters / 1e6:.1f}", f"{cost.memory / 1e6:,.0f}"]
        rows.append([name, *scores, *sizes])
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    meanings = "\n".join(f"- {heading}: `{metric}`, %" for heading, metric in _SCORES.items())
    runs = "\n".join(f"- {name}: `{result['command']}`" for name, result in zip(editors, results, strict=True))
    test = f"- base_weights `{results[0]['base_weights'][:16]}`, test data `{results[0]['data']['test'][:16]}`"
    return f"{table}\n\n{meanings}\n{test}\n{runs}\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it into a document.

    Raises:
        EditorError: the runs cannot be compared, or there are fewer than two requests.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pair = ("TEST_RUN", "ARTIFACT")
    parser.add_argument("--editor", nargs=2, metavar=pair, action="append", required=True, help="once for each editor")
    parser.add_argument("--data", type=Path, default=Path("configs/data/zsre.yaml"), help="where requests come from")
    parser.add_argument("--path", default=".", help="folder with the files that it names")
    parser.add_argument("--requests", type=int, default=21, help="how many edits are made; the first warms up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--into", type=Path, help="Markdown file to update")
    parser.add_argument("--block", help="name of the block in that file")
    options = parser.parse_args(arguments)
    results = [read_results(Path(run)) for run, _ in options.editor]
    check_comparable(results)
    editors = [load_editor(artifact) for _, artifact in options.editor]
    records = read_data(options.data, options.path, editors[0].base_model, 1).records["test"][: options.requests]
    requests = [EditRequest(record.prompt, record.target_new) for record in records]
    if len(requests) < 2:
        raise EditorError(f"two requests are needed at least, got {len(requests)}; ask for more with --requests")
    costs = [
        _in_own_process(artifact, editor.base_model, requests, options.threads)
        for (_, artifact), editor in zip(options.editor, editors, strict=True)
    ]
    table = comparison_table([editor.config.editor for editor in editors], results, costs)
    if options.into:
        save_text(replace_block(options.into.read_text(encoding="utf-8"), options.block, table), options.into)
    else:
        print(table)  # noqa: T201


def _in_own_process(*arguments: Any) -> Cost:
    """`measure_cost` where no other editor has left memory behind."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_cost, arguments)


if __name__ == "__main__":
    main()
