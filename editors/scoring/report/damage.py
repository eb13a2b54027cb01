"""What edits do to running text: perplexity, and how far the model's predictions move.

Shape legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from editors.base_models.loading import longest_text
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.lm.losses import answer_nll, locality_kl
from editors.scoring.passes import ProbePasses
from editors.texts.batches import EncodedText, Text, TokenBatch, collate_texts
from editors.texts.padding import PAD_ID
from editors.texts.prompts import open_ids

# Pieces of running text that are read of a file, tokens of one at most, and pieces of one pass.
PIECES, PIECE_TOKENS = 16, 128
_AT_ONCE = 4
# Pieces are chosen among parts of at most so many characters that end with a word; most have more tokens than a piece.
_CHARACTERS = 5 * PIECE_TOKENS
_PART = re.compile(rf"\S.{{0,{_CHARACTERS - 1}}}(?!\S)|\S{{1,{_CHARACTERS}}}", re.DOTALL)
_TEXT = "text"


@dataclass(frozen=True)
class Damage:
    """Running text of one file before and after edits.

    Args:
        text_hash: SHA-256 of the pieces' text, in hexadecimal.
        tokens: how many tokens were predicted.
        edits: how many edits were tried, each alone.
        perplexity_before: of the base model.
        perplexity: of the edited model, mean over the edits.
        worst: the highest of them.
        kl: mean `KL(base || edited)` of a token, in nats.
    """

    text_hash: str
    tokens: int
    edits: int
    perplexity_before: float
    perplexity: float
    worst: float
    kl: float


def damage(
    lm: FrozenLM, edits: Sequence[Edit], texts: Mapping[str, Sequence[str]], beside: int = 0
) -> dict[str, Damage]:
    """What `edits`, of one episode each, do to running text, by the names of `texts`.

    Args:
        lm: the base model.
        edits: each is tried alone.
        texts: plain texts of each file, by its name.
        beside: tokens that the model may have to read beside a text: an edit in memory.

    Returns:
        Nothing without edits, for files without text, and for encoder-decoder models, which read no running text.
    """
    if not edits or lm.family.has_encoder:
        return {}
    batches = {name: _pieces(lm, own, beside) for name, own in texts.items()}
    return {name: _damage(lm, edits, own) for name, own in batches.items() if own}


def _damage(lm: FrozenLM, edits: Sequence[Edit], batches: Sequence[TokenBatch]) -> Damage:
    base, moved, divergence, count = 0.0, [0.0] * len(edits), 0.0, 0
    with torch.no_grad():
        for tokens in batches:
            passes = ProbePasses(lm, {_TEXT: tokens}, keep=False)
            before = passes.run(None)
            base += float(answer_nll(before.logits[_TEXT], tokens.targets).sum())
            count += len(tokens.targets)
            for number, edit in enumerate(edits):
                after = passes.run(edit, before).logits[_TEXT]
                moved[number] += float(answer_nll(after, tokens.targets).sum())
                divergence += float(locality_kl(before.logits[_TEXT], after).clamp(min=0).sum())
    perplexities = [_perplexity(total, count) for total in moved]
    return Damage(
        text_hash=_hash(batches),
        tokens=count,
        edits=len(edits),
        perplexity_before=_perplexity(base, count),
        perplexity=sum(perplexities) / len(edits),
        worst=max(perplexities),
        kl=divergence / count / len(edits),
    )


def _perplexity(total: float, count: int) -> float:
    # A destroyed model's would not fit a float.
    return math.exp(min(total / count, 700.0))


def _hash(batches: Sequence[TokenBatch]) -> str:
    text = "\0".join(piece.prompt for tokens in batches for piece in tokens.texts or ())
    return hashlib.sha256(text.encode()).hexdigest()


def _pieces(lm: FrozenLM, texts: Sequence[str], beside: int) -> list[TokenBatch]:
    """Pieces of the texts, all but their first token to be predicted."""
    limit = longest_text(lm.model)
    length = PIECE_TOKENS if limit is None else max(2, min(PIECE_TOKENS, limit - beside))
    parts = [part.group() for text in texts for part in _PART.finditer(text)]
    encoded = [tuple(ids[:length]) for ids in open_ids(lm.tokenizer, _spread(parts))]
    pieces = [EncodedText(ids, 1, len(ids)) for ids in encoded if len(ids) > 1]
    batches = []
    for start in range(0, len(pieces), _AT_ONCE):
        own = pieces[start : start + _AT_ONCE]
        tokens = collate_texts(own, [0] * len(own), PAD_ID)
        tokens.texts = tuple(Text(str(lm.tokenizer.decode(list(piece.ids))), "") for piece in own)
        batches.append(tokens.to(lm.model.device))
    return batches


def _spread(parts: Sequence[str]) -> list[str]:
    """As many as there are to be pieces, spread evenly from the first to the last."""
    if len(parts) <= PIECES:
        return list(parts)
    return [parts[number * (len(parts) - 1) // (PIECES - 1)] for number in range(PIECES)]
