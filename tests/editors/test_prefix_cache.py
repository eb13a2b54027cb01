"""Training and validation with the prefix cache: the same numbers, and no text read twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.episodes import EpisodeCollator, EvaluationEpisodes, TrainingEpisodes
from datamodules.records import EditRecord, Probe
from editors.base import Editor
from editors.base_model import BaseModelConfig
from editors.evaluation import Evaluator
from editors.frozen import FrozenLM
from editors.ke.module import KE
from editors.ke.network import KEConfig
from editors.mend.module import MEND
from editors.mend.network import MENDConfig
from editors.prefix_store import PrefixCache
from editors.tokens import EditBatch
from tests.tiny_models import ARCHITECTURES, random_batch, tiny_model
from tests.tiny_world import TinyWorld

EDITORS = {
    "mend": lambda base, cache: MEND(base, MENDConfig(rank=8, edit_rate=0.05), prefix_cache=cache),
    "ke": lambda base, cache: KE(base, KEConfig(hidden_width=16, condition_width=24), prefix_cache=cache),
}
RECORDS = [
    EditRecord(
        f"What is the capital of {name}?",
        city,
        rephrases=(f"Which city is the seat of {name}?",),
        locality=(Probe(f"Who founded {city}?", "Anna Weld"),),
    )
    for name, city in (("Belfen", "Osten"), ("Dor", "Belfen"), ("Osten", "Dor Weld"))
]


def editor(kind: str, world: TinyWorld, cache: PrefixCache | None) -> Editor:
    torch.manual_seed(0)
    made = EDITORS[kind](BaseModelConfig(str(world.model), dtype="float32", num_blocks=2), cache)
    made.configure_model()
    return made


def batches(editor: Editor) -> Iterator[EditBatch]:
    """Two epochs of training batches, in which half of the targets are drawn anew."""
    episodes = TrainingEpisodes(
        RECORDS, EpisodeCollator(editor.text_encoder, 64, "right"), (),
        locality_per_edit=1, other_targets=0.5, edit_prompt_as_rephrase=0.5, seed=0,
    )  # fmt: skip
    for epoch in range(3):
        yield episodes[(epoch, [[0], [1]])]
        yield episodes[(epoch, [[2], [0]])]


def step(editor: Editor, batch: EditBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Losses, and the gradient of every parameter."""
    editor.zero_grad()
    losses = editor.episode_losses(batch)
    losses.total.backward()
    gradients = [p.grad for p in editor.network.parameters() if p.grad is not None]
    return [value for _, value in losses.detach().items()], [gradient.clone() for gradient in gradients]


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("kind", EDITORS)
def test_losses_and_gradients_are_those_without(kind: str, where: str, tiny_world: TinyWorld, tmp_path: Path) -> None:
    folder = str(tmp_path) if where == "folder" else None
    plain = editor(kind, tiny_world, None)
    cached = editor(kind, tiny_world, PrefixCache(folder=folder))
    store = cached.frozen.prefix_store
    assert store is not None
    assert plain.frozen.prefix_store is None
    for batch in batches(plain):
        torch.testing.assert_close(step(cached, batch), step(plain, batch), rtol=1e-5, atol=1e-6)
        store.flush()
    assert store.hits > store.misses > 0


@pytest.mark.parametrize("kind", EDITORS)
def test_validation_scores_are_those_without(kind: str, tiny_world: TinyWorld) -> None:
    def scores(cache: PrefixCache | None) -> list[dict[str, float]]:
        made = editor(kind, tiny_world, cache).eval()
        episodes = EvaluationEpisodes(RECORDS, EpisodeCollator(made.text_encoder, 64, "right"), {})
        found = []
        for _ in range(2):
            evaluator = Evaluator(generate_in_validation=False)
            evaluator.update(made, episodes[(0, [[0], [1], [2]])], generate=False)
            found.append(evaluator.compute(torch.device("cpu")))
        store = made.frozen.prefix_store
        assert store is None or store.hits >= store.misses
        return found

    for cached, plain in zip(scores(PrefixCache()), scores(None), strict=True):
        assert cached == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_known_text_is_not_read_again(architecture: str) -> None:
    """Nor is one that comes twice in a step; the states are those of a model without a store."""
    model = tiny_model(architecture)
    plain, cached = FrozenLM(model, num_blocks=1), FrozenLM(model, num_blocks=1)
    cached.keep_prefixes(PrefixCache())
    first = [random_batch((5, 3), seed=1), random_batch((4, 5), "left", seed=2)]
    then = [random_batch((4, 5), seed=2), random_batch((5, 3), "left", seed=1), random_batch((6,), seed=3)]
    read: list[int] = []

    def count(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read.append(len(args[0] if args else kwargs["input_ids"]))

    hook = model.get_input_embeddings().register_forward_pre_hook(count, with_kwargs=True)
    for batches, texts in ((first + first, 4), (then, 1)):
        read.clear()
        states = cached.prefix(batches)
        assert sum(read) == texts
        torch.testing.assert_close(states, plain.prefix(batches), rtol=1e-5, atol=1e-5)
    hook.remove()
    batch = then[0]
    # A model that has not run yet, as in a run that finds everything in files.
    fresh = FrozenLM(model, num_blocks=1)
    torch.testing.assert_close(fresh.logits(batch, None, states[0]), fresh.logits(batch), rtol=1e-4, atol=1e-5)


def test_a_second_run_finds_every_text_in_the_files_of_the_first(tiny_world: TinyWorld, tmp_path: Path) -> None:
    stores = []
    for run in ("first", "second"):
        arguments = (f"--model.prefix_cache.folder={tmp_path / 'cache'}", "--trainer.limit_val_batches=1")
        stores.append(tiny_world.run("fit", tmp_path / run, *arguments).model.frozen.prefix_store)
    first, second = [(store.hits, store.misses) for store in stores]
    assert first[1] > 0
    assert second == (sum(first), 0), first
