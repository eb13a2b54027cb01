"""SERAC for the tiny random models (words for token ids, adapters large enough to show) and for the tiny world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from datamodules import EditDataModule, ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.base_models.sites import linear_widths, resolve_sites
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.texts.batches import EditBatch
from tests.tiny_models import BOS_ID, EOS_ID, PAD_ID
from tests.tiny_world import TinyWorld

_LETTERS = "abdefghiklmnoprstu"


class Words:
    """A tokenizer whose tokens are words of two letters; it writes a beginning-of-text token."""

    all_special_ids = (PAD_ID, BOS_ID, EOS_ID)

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        return {"input_ids": [[BOS_ID, *map(self._id, text.split())] for text in texts]}

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


def new_network(model: PreTrainedModel, encoder: Path, seed: int = 0, **config: Any) -> SERACNetwork:
    """A network for the feed-forward layers of the model's last 2 blocks, its adapter away from zero."""
    widths = {site: linear_widths(model.get_submodule(site)) for site in resolve_sites(model, None, 2)}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = SERACNetwork(widths, SERACConfig(**{"encoder": str(encoder), "rank": 3, **config}))
        for up in network.adapter.up.parameters():
            up.normal_(std=0.3)
    network.tokenizer = Words()  # type: ignore[assignment]
    return network.requires_grad_(requires_grad=False)


def new_editor(world: TinyWorld, serac: dict[str, Any] | None = None, **arguments: Any) -> SERAC:
    """An editor for the tiny world's model; an adapter is away from zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base_model = BaseModelConfig(str(world.model), dtype="float32", num_blocks=2)
        editor = SERAC(
            base_model,
            SERACConfig(**{"encoder": str(world.model.parent / "encoder"), "rank": 4, **(serac or {})}),
            **arguments,
        )
        editor.configure_model()
        if editor.serac.counterfactual == "adapter":
            for up in editor.network.adapter.up.parameters():
                torch.nn.init.normal_(up, std=0.1)
    return editor


def data_module(world: TinyWorld, editor: SERAC) -> EditDataModule:
    """The tiny world's data in batches of 4 episodes."""
    splits: Any = {split: [ZsRE(f"{split}.json")] for split in ("train", "val", "test")}
    return EditDataModule(editor.base_model, **splits, path=str(world.data), episodes_per_batch=4)


def first_batch(world: TinyWorld, editor: SERAC) -> EditBatch:
    """The first training batch."""
    data = data_module(world, editor)
    data.setup("fit")
    batch: EditBatch = next(iter(data.train_dataloader()))
    return batch
