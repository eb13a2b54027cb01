"""SERAC for the tiny world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from datamodules import EditDataModule, ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.methods.serac.edit import MemoryEdit
from editors.methods.serac.module import SERAC
from editors.methods.serac.network import SERACConfig, SERACNetwork
from editors.methods.serac.routing import Routing
from editors.texts.episodes import EditBatch
from editors.texts.requests import EditRequest
from tests.tiny_world import TinyWorld


def remembered(
    network: SERACNetwork,
    requests: Sequence[EditRequest],
    episode: Sequence[int],
    num_episodes: int,
    tokenizer: Any,
) -> MemoryEdit:
    """The edit of these requests, each in the memory of its episode."""
    return network.using(network.memories(requests, episode, num_episodes), tokenizer)


def routed(edit: MemoryEdit, routing: Routing) -> MemoryEdit:
    """The same memory with another routing."""
    return replace(edit, router=replace(edit.router, routing=routing))


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
        if editor.method_config.counterfactual == "adapter":
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
