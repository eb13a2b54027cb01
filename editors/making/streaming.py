"""Many requests, some at a time: how they are divided, and how the edits of the parts become one.

Shape legend: E episodes, R rank (one for each edit token), d a layer's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from editors.edits.low_rank import LowRankEdit
from editors.edits.protocol import SiteUpdate
from editors.texts.episodes import RequestBatch

# Most tokens, padding included, whose activations are held at once when edits are made of many requests. With more,
# an edit gets hardly cheaper.
TOKENS_AT_ONCE = 1024


def streamed(requests: RequestBatch, make: Callable[[RequestBatch, list[int]], LowRankEdit], most: int) -> LowRankEdit:
    """The edit that `make` makes, of groups of episodes of similar length.

    Little padding is computed so, and the memory for making edits does not grow with their number.

    Args:
        requests: of any number of episodes.
        make: from the requests of some episodes, and the numbers of these, to their edits.
        most: tokens of a group.
    """
    lengths = [sum(own) for own in by_episode(requests, requests.lengths())]
    groups = chunks(lengths, most)
    if len(groups) == 1:
        return make(requests, list(range(requests.num_episodes)))
    return joined([make(requests.of_episodes(group), group) for group in groups], groups)


def text_parts(requests: RequestBatch, most: int) -> list[RequestBatch]:
    """The requests in parts of at most so many tokens, in order; each keeps the number of episodes.

    Args:
        requests: of any number of episodes.
        most: tokens of a part, padding included. A longer text is a part of its own.
    """
    parts: list[list[int]] = []
    longest = 0
    for number, length in enumerate(requests.lengths()):
        longest = max(longest, length)
        if not parts or (len(parts[-1]) + 1) * longest > most:
            parts.append([])
            longest = length
        parts[-1].append(number)
    return [requests] if len(parts) == 1 else [requests.select(part) for part in parts]


def by_episode(requests: RequestBatch, values: Sequence[int]) -> list[list[int]]:
    """A value of each request, gathered for each episode."""
    found: list[list[int]] = [[] for _ in range(requests.num_episodes)]
    for episode, value in zip(requests.tokens.episode.tolist(), values, strict=True):
        found[episode].append(value)
    return found


def chunks(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices of episodes in groups of similar length, each in ascending order.

    Args:
        lengths: of the episodes, in tokens.
        most: tokens of a group, each episode counted as long as the longest. A longer episode is a group of its own.
            Episodes without a token go along with the shortest: no pass can be made of nothing.

    >>> chunks([3, 20, 4, 5], most=12)
    [[0, 2], [3], [1]]
    >>> chunks([0, 20, 3], most=12)
    [[0, 2], [1]]
    """
    found: list[list[int]] = []
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i]):
        if not found or (len(found[-1]) + 1) * lengths[index] > most:
            found.append([])
        found[-1].append(index)
    found = found or [[]]
    found[0] += [i for i, length in enumerate(lengths) if not length]
    return [sorted(group) for group in found]


def joined(
    edits: Sequence[LowRankEdit], places: Sequence[Sequence[int]], num_episodes: int | None = None
) -> LowRankEdit:
    """One edit with the episodes of all `edits`; others of it are without effect.

    Args:
        edits: with updates of the same sites; they are used up.
        places: for each edit, and each of its episodes, which episode of the result it becomes.
        num_episodes: of the result; by default those of all `edits`.
    """
    updates = {}
    count = num_episodes or sum(map(len, places))
    for site in list(edits[0].updates):
        # Taken out, so that what has been joined is not kept twice.
        parts = [edit.updates.pop(site) for edit in edits]
        updates[site] = SiteUpdate(
            *(_joined(own, places, count) for own in ([p.u for p in parts], [p.v for p in parts]))
        )
    return LowRankEdit(updates)


def _joined(factors: Sequence[Tensor], places: Sequence[Sequence[int]], num_episodes: int) -> Tensor:
    """`[E, R, d]` of factors with fewer episodes and, in some, fewer rows."""
    rank = max(factor.shape[1] for factor in factors)
    whole = factors[0].new_zeros(num_episodes, rank, factors[0].shape[-1])
    for factor, rows in zip(factors, places, strict=True):
        whole[list(rows), : factor.shape[1]] = factor
    return whole
