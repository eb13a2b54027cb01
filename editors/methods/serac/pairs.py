"""Pairs of queries and edits of one batch: which are in scope, which are not, and which of those are hard.

Shape legend: Q queries (paraphrases, then locality texts), M edits, P pairs, d embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

from editors.common.collectives import items_of_all, rows_of_all
from editors.methods.serac.mining import MinedNegatives
from editors.methods.serac.scope import Scope, squared_distances
from editors.methods.serac.texts import BaseTexts
from editors.texts.episodes import EditBatch
from editors.texts.requests import EditRequest


@dataclass
class EditPairs:
    """All queries of a batch with all its edits, and with those of other processes.

    Args:
        scope: scores pairs.
        requests: the M edits, this process's first.
        queries: the Q texts.
        squared_distance: `[Q, M]` between their embeddings, differentiable.
        kinds: what each query is: "paraphrase", or "locality" or "locality_KIND", which must not be in any scope.
        own: `[Q, M]` booleans: the edit is of the query's episode.
        own_edit: `[Q]` the nearest edit of the query's own episode.
        same: `[Q, M]` booleans: the edit's prompt is that of the query's own edit, or the query itself.
        embeddings: `[Q, d]` of the queries, differentiable.
    """

    scope: Scope
    requests: list[EditRequest]
    queries: list[str]
    squared_distance: Tensor
    kinds: list[str]
    own: Tensor
    own_edit: Tensor
    same: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, scope: Scope, texts: BaseTexts, batch: EditBatch, *, everywhere: bool = False) -> EditPairs:
        """The pairs of `batch`, which may be on any device.

        Args:
            scope: scores pairs.
            texts: the base model's.
            batch: the episodes of this process.
            everywhere: queries meet the edits of the other processes too, as those of one process with all episodes
                would. Collective, in the backward pass too.
        """
        requests = list(batch.requests.requests)
        prompts = [request.prompt for request in requests]
        locality = {f"locality_{kind}": part for kind, part in batch.locality_kinds.items()}
        parts = {"paraphrase": batch.rephrase, "locality": batch.locality, **locality}
        queries = [prompt for part in parts.values() for prompt in texts.prompts(part)]
        kinds = [kind for kind, part in parts.items() for _ in range(part.num_texts)]
        embeddings = scope.embed(prompts + queries)
        keys, embedded = embeddings[: len(prompts)], embeddings[len(prompts) :]
        episode = torch.cat([part.episode for part in parts.values()])
        own = episode.unsqueeze(1) == batch.edit.episode
        if everywhere:
            others, keys = _with_others(requests, keys)
            requests, prompts = requests + others, prompts + [request.prompt for request in others]
            own = functional.pad(own, (0, len(others)))
        distance = squared_distances(embedded, keys)
        own = own.to(distance.device)
        own_edit = distance.detach().masked_fill(~own, torch.inf).argmin(dim=1)
        same = [[p in (query, prompts[gold]) for p in prompts] for query, gold in zip(queries, own_edit, strict=True)]
        flags = torch.tensor(same, dtype=torch.bool, device=distance.device).reshape(distance.shape)
        return cls(scope, requests, queries, distance, kinds, own, own_edit, flags, embedded)

    def by_kind(self, hard_negatives: int) -> dict[str, Tensor]:
        """`log s` of the pairs to learn from, or to judge the scope classifier by.

        Args:
            hard_negatives: edits of other episodes for each query.

        Returns:
            "paraphrase": each paraphrase with its own edit, in scope.
            "locality", "locality_KIND": each locality text with the edit of its episode, out of scope.
            "other_edits": each query with the most similar edits of other episodes, out of scope.
        """
        others = ~self.own & ~self.same
        distance = self.squared_distance.detach().masked_fill(~others, torch.inf)
        least, nearest = distance.topk(min(hard_negatives, distance.shape[1]), dim=1, largest=False)
        rows, places = least.isfinite().nonzero(as_tuple=True)
        own_rows = torch.arange(len(self.queries), device=rows.device)
        scores = self._scores(torch.cat([own_rows, rows]), torch.cat([self.own_edit, nearest[rows, places]]))
        own_scores, others_scores = scores.split([len(own_rows), len(rows)])
        masks = {kind: [k == kind for k in self.kinds] for kind in ("paraphrase", "locality", *self.kinds)}
        found = {kind: own_scores[torch.tensor(mask, dtype=torch.bool)] for kind, mask in masks.items()}
        return found | {"other_edits": others_scores}

    def mined(self, negatives: MinedNegatives) -> Tensor:
        """`[P]` log s of each paraphrase with the edits of other facts that were mined for its own, out of scope."""
        mined = [negatives.of(request.prompt) for request in self.rephrase_requests()]
        rows = [row for row, edits in enumerate(mined) for _ in edits]
        edits = [edit for part in mined for edit in part]
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(edit.prompt for edit in edits))}
        keys = self.scope.embed(list(place))[[place[edit.prompt] for edit in edits]]
        distance = (self.embeddings[rows] - keys).square().sum(dim=1)
        return self.scope.log_score(distance, [self.queries[row] for row in rows], edits)

    def own_scores(self) -> tuple[Tensor, Tensor]:
        """`log s` of each paraphrase and of each locality text with its own edit."""
        found = self.by_kind(0)
        return found["paraphrase"], torch.cat([scores for kind, scores in found.items() if kind.startswith("locality")])

    @property
    def num_rephrases(self) -> int:
        """How many of the queries, the first ones, are paraphrases."""
        return self.kinds.count("paraphrase")

    def _scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """`[P]` log s of queries `rows` with edits `columns`."""
        queries = [self.queries[row] for row in rows.tolist()]
        edits = [self.requests[column] for column in columns.tolist()]
        return self.scope.log_score(self.squared_distance[rows, columns], queries, edits)

    def rephrase_requests(self) -> list[EditRequest]:
        """The edit that each paraphrase is in the scope of."""
        return [self.requests[place] for place in self.own_edit[: self.num_rephrases].tolist()]

    def locality_requests(self) -> list[EditRequest]:
        """For each locality text the edit of its episode."""
        return [self.requests[place] for place in self.own_edit[self.num_rephrases :].tolist()]


def _with_others(requests: list[EditRequest], keys: Tensor) -> tuple[list[EditRequest], Tensor]:
    """The edits of the other processes, and `[M, d]` the embeddings of all edits, this process's first."""
    edits = items_of_all(requests)
    if len(edits) == 1:
        return [], keys
    rows = rows_of_all(keys, [len(part) for part in edits])
    rank = distributed.get_rank()
    others = [part for part in range(len(edits)) if part != rank]
    return [request for part in others for request in edits[part]], torch.cat([keys, *(rows[part] for part in others)])
