"""How well the scope classifier tells held-out pairs apart, and the threshold that does it best.

Shape legend: P pairs of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed

from editors.methods.serac.pairs import EditPairs
from editors.methods.serac.scope import Scope, best_threshold
from editors.methods.serac.texts import BaseTexts
from editors.texts.episodes import EditBatch


def scope_scores(scope: Scope, texts: BaseTexts, batches: Iterator[EditBatch]) -> dict[str, Tensor]:
    """`[P]` scores of each kind of pair there is on any process, see `EditPairs.by_kind`. Collective.

    Args:
        scope: the scope classifier.
        texts: the base model's.
        batches: held-out episodes.
    """
    scores: dict[str, list[float]] = {}
    # Outside of inference mode, whose tensors a sharded classifier could not use in training.
    with torch.inference_mode(mode=False), torch.no_grad():
        for batch in batches:
            for kind, log_scores in EditPairs.of(scope, texts, batch).by_kind(1).items():
                scores.setdefault(kind, []).extend(log_scores.exp().tolist() if batch.counted else [])
    return {kind: torch.tensor(values) for kind, values in _of_all_processes(scores).items() if values}


def separating_threshold(scores: dict[str, Tensor]) -> float:
    """The threshold that tells paraphrases from all other pairs best."""
    outside = [values for kind, values in scores.items() if kind != "paraphrase"]
    return best_threshold(scores.get("paraphrase", torch.zeros(0)), torch.cat([*outside, torch.zeros(0)]))


def scope_accuracies(scores: dict[str, Tensor], threshold: Tensor) -> dict[str, Tensor]:
    """`KIND_accuracy` for each kind of pair, and the threshold `[1]` itself."""
    found = {"threshold": threshold[0]}
    for kind, values in scores.items():
        found[f"{kind}_accuracy"] = ((values > threshold) == (kind == "paraphrase")).float().mean()
    return found


def evaluation_batches(loaders: Any, limits: Sequence[float]) -> Iterator[EditBatch]:
    """The batches that an evaluation will see.

    Args:
        loaders: Lightning's, one or a list.
        limits: how many batches of each.
    """
    loaders = loaders if isinstance(loaders, list) else [loaders]
    for loader, limit in zip(loaders, limits, strict=True):
        yield from islice(loader, int(limit))


def _of_all_processes(scores: dict[str, list[float]]) -> dict[str, list[float]]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return scores
    everyone: list[dict[str, list[float]]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, scores)
    kinds = dict.fromkeys(kind for part in everyone for kind in part)
    return {kind: [score for part in everyone for score in part.get(kind, [])] for kind in kinds}
