"""SERAC's scope classifier: `python -m benchmarks.scope ARTIFACT --data configs/data/zsre.yaml --path DIR`.

In scope are paraphrases of test records with their own edit. Out of scope are, from easy to hard: the data set's
locality texts with the edit of their record, further kinds of locality texts, and paraphrases with the most similar
edit prompt of all other facts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.setting import quieten, read_data
from callbacks.scope_plot import draw_scope, roc_curve
from datamodules.records import EditRecord
from editors.artifacts.editor import load_editor
from editors.common.errors import EditorError
from editors.common.files import save_json
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.network import SERACNetwork
from editors.texts.requests import EditRequest

_TOGETHER = 256


@torch.no_grad()
def scope_scores(network: SERACNetwork, records: Sequence[EditRecord]) -> dict[str, Tensor]:
    """Scores of pairs of a text and an edit prompt, for each kind of pair, those in scope ("paraphrase") first."""
    hardest = MinedNegatives(network.scope.embed, records, 1)
    pairs: dict[str, list[tuple[str, EditRequest]]] = {"paraphrase": [], "locality": []}
    for record in records:
        pairs["paraphrase"] += [(text, record.request()) for text in record.rephrases]
        for probe in record.locality:
            kind = f"locality_{probe.kind}" if probe.kind else "locality"
            pairs.setdefault(kind, []).append((probe.prompt, record.request()))
    others = [(text, edit) for record in records for text in record.rephrases for edit in hardest.of(record.prompt)]
    pairs["other_edits"] = others
    return {kind: _scores(network, of_kind) for kind, of_kind in pairs.items() if of_kind}


def _scores(network: SERACNetwork, pairs: Sequence[tuple[str, EditRequest]]) -> Tensor:
    scores = []
    for start in range(0, len(pairs), _TOGETHER):
        part = pairs[start : start + _TOGETHER]
        queries, edits = [query for query, _ in part], [edit for _, edit in part]
        keys = network.scope.embed([edit.prompt for edit in edits])
        distance = (network.scope.embed(queries) - keys).square().sum(dim=1)
        scores.append(network.scope.log_score(distance, queries, edits).exp().cpu())
    return torch.cat(scores)


def accuracies(scores: dict[str, Tensor], threshold: float) -> dict[str, dict[str, float]]:
    """For each kind of pair how many there are, the share that is routed rightly, and the area under its ROC curve."""
    found = {}
    for kind, values in scores.items():
        inside = kind == "paraphrase"
        found[kind] = {"pairs": len(values), "accuracy": float(((values > threshold) == inside).double().mean())}
        if not inside:
            wrong, right = roc_curve(scores["paraphrase"], values)
            found[kind]["area"] = float(torch.trapezoid(right, wrong))
    return found


def result_table(found: dict[str, dict[str, float]], threshold: float) -> Table:
    """One row for each kind of pair."""
    table = Table(title=f"Scope classifier at its threshold {threshold:.3f}")
    for heading in ("", "pairs", "routed rightly, %", "area under the ROC curve"):
        table.add_column(heading, justify="right" if heading else "left")
    for kind, values in found.items():
        area = f"{values['area']:.3f}" if "area" in values else ""
        table.add_row(kind, f"{values['pairs']:,.0f}", f"{100 * values['accuracy']:.1f}", area)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; write it and the ROC curves where asked to.

    Raises:
        EditorError: the artifact is of another editor, or the data have no paraphrases.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", help="folder of an exported SERAC editor")
    parser.add_argument("--data", type=Path, required=True, help="a file of configs/data/")
    parser.add_argument("--path", default=".", help="folder with the files that it names")
    parser.add_argument("--output", type=Path, help="write FILE (JSON) and a picture beside it")
    options = parser.parse_args(arguments)
    quieten()
    editor = load_editor(options.artifact)
    if not isinstance(editor.network, SERACNetwork):
        raise EditorError(
            f"{options.artifact} is an editor {editor.config.editor!r}; only serac has a scope classifier"
        )
    scores = scope_scores(editor.network, read_data(options.data, options.path, editor.base_model, 1).records["test"])
    if "paraphrase" not in scores:
        raise EditorError("the test records have no paraphrases; name other data with --data")
    threshold = float(editor.network.threshold)
    found = accuracies(scores, threshold)
    Console().print(result_table(found, threshold))
    if options.output:
        save_json({"artifact": options.artifact, "threshold": threshold, "kinds": found}, options.output)
        draw_scope(scores, threshold, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
