"""`EditMemory`: any number of edits as texts with their embeddings. Append, replace, remove, look up, save, load.

Shape legend: M edits in memory, Q queries, d embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editors.common.autocast import without_autocast
from editors.common.errors import ArtifactError, EditorError
from editors.common.files import read_tensors, save_tensors
from editors.methods.serac.search import ClusteredKeys, is_installed
from editors.texts.conflicts import normalised
from editors.texts.requests import EditRequest

FORMAT = "hyperedit-memory-1"
# Edits compared at once: the products of one chunk stay in the processor's cache and no [Q, M] matrix is formed.
_CHUNK = 16_384
# From so many edits on, a memory on the CPU is searched with faiss where that is installed.
_CLUSTERED_FROM = 50_000


class EditMemory:
    """Edits in the order of their first writing, each with the embedding of its prompt.

    Args:
        width: d.
        device: where the embeddings are.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._requests: list[EditRequest] = []
        self._place: dict[str, int] = {}
        # Room for more edits than there are, so that appending one does not copy all others.
        self._keys = torch.zeros(0, width, device=device)
        self._half_squares = torch.zeros(0, device=device)
        self._clusters: ClusteredKeys | None = None  # made at a lookup, then kept up to date

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """The edits."""
        return tuple(self._requests)

    @property
    def keys(self) -> Tensor:
        """`[M, d]` embeddings of the edit prompts."""
        return self._keys[: len(self)]

    def request(self, index: int) -> EditRequest:
        """The edit at `index`."""
        return self._requests[index]

    @torch.no_grad()
    def write(self, requests: Sequence[EditRequest], keys: Tensor) -> None:
        """Append edits; one whose prompt is in memory already (see `normalised`) takes the old one's place.

        Args:
            requests: the edits; the last one counts where a prompt occurs twice.
            keys: `[len(requests), d]` embeddings of their prompts.

        Raises:
            EditorError: there is not one key of width d for each edit.
        """
        if keys.shape != (len(requests), self._keys.shape[1]):
            raise EditorError(
                f"{len(requests)} edits need keys of shape {[len(requests), self._keys.shape[1]]}, got {[*keys.shape]}"
            )
        before, places = len(self), []
        for request in requests:
            place = self._place.setdefault(normalised(request.prompt), len(self._requests))
            self._requests[place : place + 1] = [request]
            places.append(place)
        self._make_room(len(self._requests))
        rows = dict(zip(places, range(len(places)), strict=True))  # for each place the last edit written there
        chosen = keys.detach().to(self._keys)[list(rows.values())]
        self._keys[list(rows)] = chosen
        self._half_squares[list(rows)] = chosen.square().sum(dim=1) / 2
        if self._clusters is not None:
            replaced = [place for place in rows if place < before]
            self._clusters.replace(replaced, self._keys[replaced])
            self._clusters.append(self.keys[before:])

    def _make_room(self, count: int) -> None:
        if count > len(self._keys):
            room = max(count, 2 * len(self._keys)) - len(self._keys)
            self._keys = torch.cat([self._keys, self._keys.new_zeros(room, self._keys.shape[1])])
            self._half_squares = torch.cat([self._half_squares, self._half_squares.new_zeros(room)])

    def remove(self, prompt: str) -> EditRequest:
        """Take back the edit of `prompt`.

        Returns:
            The edit that is no longer in memory.

        Raises:
            EditorError: there is none.
        """
        if normalised(prompt) not in self._place:
            raise EditorError(f"there is no edit of prompt {prompt!r} in this memory of {len(self)} edits")
        place = self._place.pop(normalised(prompt))
        kept = [i for i in range(len(self)) if i != place]
        self._keys, self._half_squares = self._keys[kept], self._half_squares[kept]
        if self._clusters is not None:
            self._clusters.remove(place)
        removed = self._requests.pop(place)
        self._place = {normalised(request.prompt): i for i, request in enumerate(self._requests)}
        return removed

    @torch.no_grad()
    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """For each query `[Q, d]` the edit whose key has the least Euclidean distance.

        The answer is exact, except for far queries in a large memory, see `ClusteredKeys`.

        Returns:
            index: `[Q]` of the edit.
            squared_distance: `[Q]` to its key.

        Raises:
            EditorError: the memory is empty.
        """
        if not self._requests:
            raise EditorError("an empty memory has no nearest edit; write one first")
        with without_autocast(queries.device):  # in half precision, similar prompts would be taken for one another
            index = self._exact(queries) if (clusters := self._searchable()) is None else clusters.nearest(queries)
            missed = index < 0
            if missed.any():
                index[missed] = self._exact(queries[missed])
        # From the difference: `_exact` compares numbers that have lost the digits of small distances.
        return index, (queries - self.keys[index]).square().sum(dim=1)

    def _exact(self, queries: Tensor) -> Tensor:
        """`[Q]` the nearest edit of each query."""
        index = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        best = queries.new_full((len(queries),), -torch.inf)
        for start in range(0, len(self), _CHUNK):
            keys = self.keys[start : start + _CHUNK]
            # ||q - k||^2 = ||q||^2 - 2 (q k - ||k||^2 / 2): the nearest key has the largest bracket.
            value, place = (queries @ keys.mT - self._half_squares[start : start + len(keys)]).max(dim=1)
            index = torch.where(value > best, place + start, index)
            best = torch.maximum(value, best)
        return index

    def _searchable(self) -> ClusteredKeys | None:
        """The clusters, if this memory is large enough for them; made anew when it has doubled since."""
        if len(self) < _CLUSTERED_FROM or self._keys.device.type != "cpu" or not is_installed():
            self._clusters = None
        elif self._clusters is None or len(self) > 2 * self._clusters.built_with:
            self._clusters = ClusteredKeys(self.keys)
        return self._clusters

    def to(self, device: torch.device | str) -> EditMemory:
        """A copy on another device."""
        copy = EditMemory(self._keys.shape[1], device)
        copy.write(self._requests, self.keys)
        return copy

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the memory to one safetensors file, with the texts as JSON in its header.

        Args:
            path: the file; an existing one is replaced when all is written.
            metadata: plain JSON facts that travel with it.
        """
        edits = [_texts(request) for request in self._requests]
        texts = json.dumps({"edits": edits, "metadata": metadata or {}}, ensure_ascii=False)
        save_tensors({"keys": self.keys}, path, {"format": FORMAT, "memory": texts})

    @classmethod
    def load(cls, path: str | Path) -> tuple[EditMemory, dict[str, Any]]:
        """Read a memory written by `save`, and its metadata.

        Raises:
            ArtifactError: the file is missing, damaged, or not a memory.
        """
        tensors, header = read_tensors(path, "a memory")
        if header.get("format") != FORMAT:
            raise ArtifactError(
                f"{path} is not a hyperedit memory (format {header.get('format')!r}, wanted {FORMAT!r})"
            )
        try:
            content = json.loads(header["memory"])
            memory = cls(tensors["keys"].shape[1])
            memory.write([EditRequest(*texts) for texts in content["edits"]], tensors["keys"])
            return memory, dict(content["metadata"])
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from error


def _texts(request: EditRequest) -> list[str | None]:
    """The fields of a request in order, the form only if it is not bare; `EditRequest(*texts)` is the request."""
    texts = [request.prompt, request.target, request.subject, request.relation]
    return texts if request.form == "bare" else [*texts, request.form]
