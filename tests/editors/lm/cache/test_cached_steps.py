"""Training and validation with everything kept that can be: the same numbers, and no text read twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from datamodules.episodes import EpisodeCollator, EvaluationEpisodes, TrainingEpisodes
from datamodules.records import EditRecord, Probe
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import EditorError
from editors.lm.batching.bucketing import length_buckets
from editors.lm.cache.store import PrefixCache
from editors.lm.kv_cache import KVCache
from editors.methods.ke.module import KE
from editors.methods.ke.network import KEConfig
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.scoring.evaluator import Evaluator
from editors.texts.episodes import EditBatch
from editors.training.config import TrainingConfig
from editors.training.learned import LearnedEditor
from tests.tiny_models import ARCHITECTURES, random_batch, tiny_lm, tiny_model
from tests.tiny_world import TinyWorld

EDITORS = {
    "mend": lambda base, cache: MEND(
        base, MENDConfig(rank=8, edit_rate=0.05), training=TrainingConfig(prefix_cache=cache)
    ),
    "ke": lambda base, cache: KE(
        base, KEConfig(hidden_width=16, condition_width=24), training=TrainingConfig(prefix_cache=cache)
    ),
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


def editor(kind: str, world: TinyWorld, cache: PrefixCache | None) -> LearnedEditor:
    torch.manual_seed(0)
    made = EDITORS[kind](BaseModelConfig(str(world.model), dtype="float32", num_blocks=2), cache)
    made.configure_model()
    return made


def batches(editor: LearnedEditor) -> Iterator[EditBatch]:
    """Three epochs of training batches, in which half of the targets are drawn anew."""
    episodes = TrainingEpisodes(
        RECORDS, EpisodeCollator(editor.lm.texts, 64), (),
        locality_per_edit=1, other_targets=0.5, edit_prompt_as_rephrase=0.5, seed=0,
    )  # fmt: skip
    for epoch in range(3):
        yield episodes[(epoch, [[0], [1]])]
        yield episodes[(epoch, [[2], [0]])]


def step(editor: LearnedEditor, batch: EditBatch) -> tuple[list[Tensor], list[Tensor]]:
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
    cached = editor(kind, tiny_world, PrefixCache(folder=folder, factors=True))
    stores = cached.lm.stores
    assert len(stores) == 3
    assert not plain.lm.stores
    for batch in batches(plain):
        torch.testing.assert_close(step(cached, batch), step(plain, batch), rtol=1e-5, atol=1e-6)
        for store in stores.values():
            store.flush()
    assert all(store.hits > 0 and store.misses > 0 for store in stores.values())


@pytest.mark.parametrize("kind", EDITORS)
def test_a_step_of_known_texts_runs_the_edited_model_only(kind: str, tiny_world: TinyWorld) -> None:
    made = editor(kind, tiny_world, PrefixCache(factors=True))
    batch = next(batches(made))
    step(made, batch)
    passes: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda *_: passes.update({name: passes.get(name, 0) + 1})

    for block in (0, 3):
        layer = made.lm.model.get_submodule(f"model.layers.{block}.mlp.down_proj")
        layer.register_forward_hook(count(f"block {block}"))
    scored: list[int] = []
    made.lm.model.get_output_embeddings().register_forward_hook(lambda _, args, __: scored.append(args[0].shape[1]))
    step(made, batch)
    taught = [batch.edit, batch.rephrase] if made.objective.trains_on_edit_prompts else [batch.rephrase]
    edited = len(length_buckets([*taught, batch.locality], [None] * (len(taught) + 1)))
    assert passes == {"block 3": edited}
    # Of the locality texts both models' logits are wanted; the edited passes themselves leave the head nothing to do.
    wanted = [len(tokens.targets) for tokens in (batch.locality, batch.locality, *taught)]
    assert sorted(filter(None, scored)) == sorted(wanted)


@pytest.mark.parametrize("kind", EDITORS)
def test_validation_scores_are_those_without(kind: str, tiny_world: TinyWorld) -> None:
    def scores(cache: PrefixCache | None) -> list[dict[str, float]]:
        made = editor(kind, tiny_world, cache).eval()
        episodes = EvaluationEpisodes(RECORDS, EpisodeCollator(made.lm.texts, 64), {})
        found = []
        for _ in range(2):
            evaluator = Evaluator(made.lm, made.network)
            evaluator.update(episodes[(0, [[0], [1], [2]])], generate=False)
            found.append(evaluator.compute(torch.device("cpu")))
        used = {name: store.hits for name, store in made.lm.stores.items()}
        assert cache is None or (used["frozen prefix"] > 0 and used["factors"] == len(RECORDS))
        return found

    for cached, plain in zip(scores(PrefixCache(factors=True)), scores(None), strict=True):
        assert cached == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_known_text_is_not_read_again(architecture: str) -> None:
    """Nor is one that comes twice in a step; the states are those of a model without a store."""
    model = tiny_model(architecture)
    plain, cached = tiny_lm(model, num_blocks=1), tiny_lm(model, num_blocks=1)
    cached.use_cache(PrefixCache())
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
    fresh = tiny_lm(model, num_blocks=1)
    torch.testing.assert_close(fresh.logits(batch, None, states[0]), fresh.logits(batch), rtol=1e-4, atol=1e-5)


def test_a_second_run_finds_every_text_in_the_files_of_the_first(tiny_world: TinyWorld, tmp_path: Path) -> None:
    cache = (f"--model.training.prefix_cache.folder={tmp_path / 'cache'}", "--model.training.prefix_cache.factors=true")
    found = []
    for run in ("first", "second"):
        made = tiny_world.run("fit", tmp_path / run, *cache, "--trainer.limit_val_batches=1").model
        found.append({kind: (store.hits, store.misses) for kind, store in made.lm.stores.items()})
    first, second = found
    assert len(first) == 3
    assert all(misses > 0 for _, misses in first.values())
    assert second == {kind: (sum(counts), 0) for kind, counts in first.items()}


def test_the_log_says_how_much_had_come_before(tiny_world: TinyWorld, caplog: pytest.LogCaptureFixture) -> None:
    made = editor("mend", tiny_world, PrefixCache(factors=True))
    batch = next(batches(made))
    for _ in range(2):
        step(made, batch)
    with caplog.at_level("INFO", "editors.training.learned"):
        made.teardown("fit")
    assert "Cache, base model's answers: 2 of 4 texts had come before" in caplog.text
    assert "Cache, factors: 2 of 4 texts had come before" in caplog.text


@pytest.mark.parametrize("strategy", [FSDPStrategy(), SimpleNamespace(zero_stage_3=True)], ids=["FSDP", "ZeRO-3"])
def test_strategies_that_shard_the_base_model_are_refused(strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MEND(BaseModelConfig("nowhere"), training=TrainingConfig(prefix_cache=PrefixCache()))
    monkeypatch.setattr(made, "_trainer", SimpleNamespace(strategy=strategy))
    with pytest.raises(EditorError, match=r"prefix_cache needs a strategy that keeps the base model whole"):
        made.configure_model()


def test_keys_are_kept_of_texts_whose_states_are_known() -> None:
    """Generation goes on behind them; the cache holds states only."""
    lm, tokens, kept = tiny_lm(tiny_model("llama"), num_blocks=2), random_batch((5, 8)), KVCache()
    lm.use_cache(PrefixCache())
    lm.prefix([tokens])
    lm.prefix([tokens], [kept])
    assert len(kept.parts) == tokens.num_texts
