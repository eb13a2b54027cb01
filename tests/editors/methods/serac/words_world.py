"""A world of words: tiny random models, a tokenizer for their ids, and the adapter away from zero.

What an applied memory computes is compared with a plain model that is given the texts one by one, without padding or
hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editors.base_models.sites import linear_widths, resolve_sites
from editors.methods.serac.counterfactual.interface import mix
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.routing import Routing
from editors.texts.batches import EncodedText, PaddingSide, collate_texts
from editors.texts.requests import EditRequest
from tests.editors.methods.serac.worlds import remembered, routed
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID, tiny_model

_LETTERS = "abdefghiklmnoprstu"


class _Words:
    """A tokenizer whose tokens are words of two letters; it writes a beginning-of-text token."""

    all_special_ids = (PAD_ID, BOS_ID, EOS_ID)

    def __call__(self, texts: Sequence[str], *, return_special_tokens_mask: bool = False) -> dict[str, Any]:
        ids = [[BOS_ID, *map(self._id, text.split())] for text in texts]
        special = [[1, *[0] * (len(row) - 1)] for row in ids]
        return {"input_ids": ids} | ({"special_tokens_mask": special} if return_special_tokens_mask else {})

    def batch_decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(self.word(i) for i in row if i not in self.all_special_ids) for row in rows]

    @staticmethod
    def word(i: int) -> str:
        return _LETTERS[i // len(_LETTERS)] + _LETTERS[i % len(_LETTERS)]

    @staticmethod
    def _id(word: str) -> int:
        return _LETTERS.index(word[0]) * len(_LETTERS) + _LETTERS.index(word[1])

    def text(self, ids: Sequence[int]) -> str:
        """What `ids` say."""
        return " ".join(map(self.word, ids))


WORDS: Any = _Words()
PROMPTS: tuple[tuple[int, ...], ...] = ((11, 12, 13, 14, 15), (21, 22, 23), (31, 32, 33, 34, 35, 36), (41, 42))
TARGETS: tuple[tuple[int, ...], ...] = ((51, 52), (61,), (71, 72), (81,))
# The first and third prompt are in memory.
EDITS = [EditRequest(WORDS.text(PROMPTS[i]), WORDS.text(TARGETS[i])) for i in (0, 2)]
CONTEXTS: tuple[tuple[int, ...], ...] = (PROMPTS[0] + TARGETS[0], (), PROMPTS[2] + TARGETS[2], ())
SIDES: tuple[PaddingSide, ...] = ("left", "right")


def new_network(model: PreTrainedModel, encoder: Path, seed: int = 0, **config: Any) -> SERACNetwork:
    """A network for the feed-forward layers of the model's last 2 blocks, its adapter away from zero."""
    widths = {site: linear_widths(model.get_submodule(site)) for site in resolve_sites(model, None, 2)}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = SERACNetwork(widths, SERACConfig(**{"encoder": str(encoder), "rank": 3, **config}))
        for up in network.adapter.up.parameters():
            up.normal_(std=0.3)
    return network.requires_grad_(requires_grad=False)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class World:
    """A base model, a network for it, and the same model with the adapter in its weights."""

    def __init__(self, architecture: str, encoder: Path) -> None:
        self.model = tiny_model(architecture)
        self.network = new_network(self.model, encoder, scale=40.0)
        self.counterfactual = copy.deepcopy(self.model)
        self.network.adapter.edit().select(1).merge(self.counterfactual)

    def edit(self, routing: Routing = "hard", requests: Sequence[EditRequest] = EDITS) -> MemoryEdit:
        return routed(self.remember(requests, [0] * len(requests), 1), routing)

    def remember(self, requests: Sequence[EditRequest], episode: Sequence[int], num_episodes: int) -> MemoryEdit:
        return remembered(self.network, requests, episode, num_episodes, WORDS)

    def wanted(self, row: int, ids: Sequence[int], context: Sequence[int] | None = None) -> Tensor:
        """`[T, V]` logits of row `row`, which starts with its prompt, alone."""
        context = CONTEXTS[row] if context is None else context
        model = self.counterfactual if context else self.model
        return plain(model, [*context, *ids])[-len(ids) :]


@torch.no_grad()
def plain(model: PreTrainedModel, ids: Sequence[int], *, bos: bool = True) -> Tensor:
    """`[T, V]` logits after each of `ids`, which follow a beginning-of-text token."""
    logits: Tensor = model(torch.tensor([[BOS_ID, *ids] if bos else list(ids)])).logits[0]
    return logits[1:] if bos else logits


def padded(side: PaddingSide, prompts: Sequence[Sequence[int]] = PROMPTS) -> tuple[Tensor, Tensor]:
    """Prompts with a beginning-of-text token as ids and mask."""
    width = max(map(len, prompts)) + 1
    ids = torch.full((len(prompts), width), PAD_ID)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt) - 1 if side == "left" else 0
        ids[row, start : start + len(prompt) + 1] = torch.tensor([BOS_ID, *prompt])
        mask[row, start : start + len(prompt) + 1] = 1
    return ids, mask


def forward(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        return model(**arguments, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits


def answers(side: PaddingSide) -> tuple[Any, list[EncodedText]]:
    texts = [
        EncodedText((BOS_ID, *p, *t), len(p) + 1, len(p) + len(t) + 1) for p, t in zip(PROMPTS, TARGETS, strict=True)
    ]
    return collate_texts(texts, [0] * len(texts), PAD_ID, side), texts


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: list[int], count: int) -> list[int]:
    """Greedy continuation without padding and cache, past any end of text."""
    for _ in range(count):
        ids = [*ids, int(plain(model, ids, bos=False)[-1].argmax())]
    return ids[-count:]


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, count: int, beams: int = 1) -> list[list[int]]:
    output = model.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
        num_beams=beams, eos_token_id=None, pad_token_id=PAD_ID,
    )  # fmt: skip
    return [row[-count:] for row in output.tolist()]


def soft_logits(world: World, edit: MemoryEdit, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """`[T, V]`: both models' probabilities for `ids` mixed by the score of `prompt`."""
    route = edit.router.route([WORDS.text(prompt)], [0])
    (request,) = route.nearest
    assert request is not None
    context = WORDS([f"{request.prompt} {request.target}"])["input_ids"][0][1:]
    base = world.wanted(0, ids, ())
    return mix(base, world.wanted(0, ids, context), route.log_score.expand(len(ids)))
