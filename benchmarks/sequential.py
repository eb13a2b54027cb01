"""Edits in force together: `python -m benchmarks.sequential ARTIFACT --data configs/data/zsre.yaml --path DIR`.

Each of the first N test records is edited on the unedited model, and the N edits are composed. For each of several N
the table shows reliability, generality and locality on those records, under teacher forcing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.setting import quieten, read_data
from datamodules.episodes import EpisodeCollator, EvaluationEpisodes
from datamodules.records import EditRecord
from editors.artifacts.editor import LoadedEditor, load_editor
from editors.base_models.loading import load_base_model, load_tokenizer
from editors.common.files import save_json
from editors.edits.composing import compose
from editors.edits.protocol import Edit
from editors.scoring.evaluator import Evaluator
from editors.scoring.names import TOKEN_LEVEL

_TOGETHER = 16
_MAX_TOKENS = 512
_COLUMNS = tuple(TOKEN_LEVEL)


@dataclass
class Point:
    """After a number of edits: means over records of the mean over the record's texts.

    Args:
        edits: how many edits are in force.
        reliability: token accuracy on the edit prompts, teacher-forced.
        generality: the same on paraphrases.
        locality: share of answer tokens of the locality texts where the prediction is the unedited model's.
    """

    edits: int
    reliability: float
    generality: float
    locality: float


def sequential_edits(
    editor: LoadedEditor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[EditRecord],
    counts: Sequence[int],
    scored: int,
) -> list[Point]:
    """The points for each of `counts`.

    Args:
        editor: a trained editor.
        model: its base model.
        tokenizer: its tokenizer.
        records: as many as the largest count, or more.
        counts: numbers of edits.
        scored: score at most so many of the edited records, spread evenly.
    """
    edits = _single_edits(editor, model, tokenizer, records[: max(counts)])
    points = []
    with editor.borrowed(model, tokenizer) as lm:
        evaluator, collate = Evaluator(lm, editor.network), EpisodeCollator(lm.texts, _MAX_TOKENS)
        for count in counts:
            chosen = [records[i * count // min(scored, count)] for i in range(min(scored, count))]
            batches = EvaluationEpisodes(chosen, collate, {})
            points.append(Point(count, *_scores(evaluator, compose(edits[:count]), batches, len(chosen))))
    return points


def _single_edits(
    editor: LoadedEditor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[EditRecord]
) -> list[Edit]:
    """Each record's edit, made on the unedited model."""
    requests = [record.request() for record in records]
    edits: list[Edit] = []
    for start in range(0, len(requests), _TOGETHER):
        together = editor.edit_each(model, tokenizer, requests[start : start + _TOGETHER])
        edits += [together.select(episode) for episode in range(together.num_episodes)]
    return edits


def _scores(evaluator: Evaluator, edit: Edit, batches: EvaluationEpisodes, count: int) -> tuple[float, float, float]:
    """The means over all records; every record meets the same edit."""
    found: dict[str, list[Tensor]] = {metric: [] for metric in TOKEN_LEVEL.values()}
    for start in range(0, count, _TOGETHER):
        batch = batches[0, [[index] for index in range(start, min(start + _TOGETHER, count))]]
        scores = evaluator.scores(batch.to(edit.device), edit, generate=False)
        for metric, parts in found.items():
            if metric in scores:
                values, present = scores[metric]
                parts.append(values[present])
    means = [torch.cat(values).mean() if values else torch.tensor(torch.nan) for values in found.values()]
    return float(means[0]), float(means[1]), float(means[2])


def result_table(points: Sequence[Point]) -> Table:
    """One row for each number of edits, in per cent."""
    table = Table(title="Edits in force together, teacher-forced, token level, %")
    for heading in ("edits", *_COLUMNS):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(f"{point.edits:,}", *(f"{100 * getattr(point, column):.1f}" for column in _COLUMNS))
    return table


def draw(points: Sequence[Point], path: Path) -> None:
    """The table as a picture."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for column in _COLUMNS:
        axes.plot([p.edits for p in points], [getattr(p, column) for p in points], marker="o", label=column)
    axes.set(xscale="log", xlabel="edits in force", ylabel="teacher-forced, token level", ylim=(0, 1.03))
    axes.legend(frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; write it and a picture where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="folder of an exported editor")
    parser.add_argument("--data", type=Path, required=True, help="a file of configs/data/")
    parser.add_argument("--path", default=".", help="folder with the files that it names")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000], help="numbers of edits")
    parser.add_argument("--scored", type=int, default=200, help="records scored at each point (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write FILE (JSON) and a picture beside it")
    options = parser.parse_args(arguments)
    quieten()
    editor = load_editor(options.artifact)
    records = read_data(options.data, options.path, editor.base_model, 1).records["test"]
    counts = sorted({min(count, len(records)) for count in options.counts})
    model, tokenizer = load_base_model(editor.base_model), load_tokenizer(editor.base_model)
    points = sequential_edits(editor, model, tokenizer, records, counts, options.scored)
    Console().print(result_table(points))
    if options.output:
        save_json({"artifact": options.artifact, "points": [asdict(point) for point in points]}, options.output)
        draw(points, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
