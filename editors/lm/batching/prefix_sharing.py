"""Prefix sharing: which leading tokens of texts that begin alike are better read once for all, the rest after that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from editors.lm.batching.bucketing import cheapest_buckets
from editors.lm.batching.compact import Text
from editors.lm.batching.costs import READ_TOKEN_COST


def shared_prefixes(
    texts: Sequence[Text], cost: Callable[[int, int], int], read_token_cost: float = READ_TOKEN_COST
) -> dict[Text, int]:
    """Texts that begin alike, and how many of their leading tokens are to be read before the rest.

    Sets of texts are chosen such that the fewest tokens are read: the prefix of each set once, then what is left of
    each text. That takes more passes than reading whole texts does; if it costs no less, nothing is shared.

    Args:
        texts: their token ids.
        cost: what a pass over so many texts costs if the longest has such a length.
        read_token_cost: what it costs to go on behind a token that has been read.

    Returns:
        For each text that shares its prefix, the prefix's length; the whole text's, if others begin with it. Empty if
        reading whole texts costs no more.
    """
    ordered = sorted(set(texts))
    prefixes = _most_saved(ordered)
    firsts = {text[: prefixes.get(text, len(text))] for text in ordered}
    rests = {text: length for text, length in prefixes.items() if len(text) > length}
    split = _least_cost([len(text) for text in firsts], cost) + read_token_cost * sum(rests.values())
    split += _least_cost([len(text) - length for text, length in rests.items()], cost)
    return prefixes if split < _least_cost([len(text) for text in ordered], cost) else {}


def _most_saved(ordered: Sequence[Text]) -> dict[Text, int]:
    """The prefixes with which the most tokens are saved; `ordered` are distinct and sorted.

    Texts that begin alike follow each other in sorted order. For the first `end` texts, `saved[end]` is the most that
    can be saved, and `last[end]` where the last set of that solution begins, and what its texts have in common.
    """
    common = [_common(*pair) for pair in pairwise(ordered)]
    saved, last = [0], [(0, 0)]
    for end in range(1, len(ordered) + 1):
        best, begin, length = saved[-1], end - 1, 0
        shared = len(ordered[end - 1])
        for start in range(end - 2, -1, -1):
            shared = min(shared, common[start])
            if not shared:
                break
            if saved[start] + (end - start - 1) * shared > best:
                best, begin, length = saved[start] + (end - start - 1) * shared, start, shared
        saved.append(best)
        last.append((begin, length))
    prefixes: dict[Text, int] = {}
    end = len(ordered)
    while end:
        begin, length = last[end]
        prefixes |= dict.fromkeys(ordered[begin:end], length) if length else {}
        end = begin
    return prefixes


def _common(one: Text, other: Text) -> int:
    """How many leading tokens two different texts have in common."""
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _least_cost(lengths: Sequence[int], cost: Callable[[int, int], int]) -> int:
    """What texts of these lengths cost in the buckets that are cheapest."""
    return sum(cost(len(bucket), max(lengths[i] for i in bucket)) for bucket in cheapest_buckets(lengths, cost))
