"""Tests of `datamodules.episodes`: what an episode is made of, and that padding changes no loss."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from datamodules.episodes import EpisodeCollator, EvaluationEpisodes, TrainingEpisodes
from datamodules.near import NearLocality
from datamodules.records import EditRecord, Probe
from datamodules.training_forms import TrainingForms
from editors.base_models.loading import BaseModelConfig, load_tokenizer
from editors.lm.losses import EpisodeLosses
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.texts.batches import TokenBatch
from editors.texts.encoders import DecoderOnlyTexts
from editors.texts.episodes import EditBatch
from tests.tiny_world import TinyWorld

PROMPTS = ("What is the capital of Belfen?", "Who founded Dor?", "Which language do people in Gal speak every day?")
POOL = [Probe(f"nq question: number {i}", f"pool{i}") for i in range(20)]


def record(number: int, **fields: Any) -> EditRecord:
    settings: dict[str, Any] = {
        "prompt": PROMPTS[number],
        "target_new": f"new {number}",
        "ground_truth": f"old {number}",
        "rephrases": (f"first rephrase {number}", f"second rephrase {number}"),
        "locality": (Probe(f"own question {number}", f"own {number}"),),
    }
    return EditRecord(**{**settings, **fields})


RECORDS = [record(number) for number in range(3)]


@pytest.fixture(scope="module")
def collate(tiny_world: TinyWorld) -> EpisodeCollator:
    return EpisodeCollator(DecoderOnlyTexts(load_tokenizer(BaseModelConfig(str(tiny_world.model)))), 64)


@pytest.fixture(scope="module")
def said(tiny_world: TinyWorld) -> Any:
    """Turns a token batch into its `(episode, text, answer)`."""
    tokenizer = load_tokenizer(BaseModelConfig(str(tiny_world.model)))

    def read(tokens: TokenBatch) -> list[tuple[int, str, str]]:
        targets = [tokens.targets[tokens.rows == row].tolist() for row in range(tokens.num_texts)]
        # The last answer token is not in the input.
        ids = [[*row, target[-1]] for row, target in zip(tokens.input_ids.tolist(), targets, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers = tokenizer.batch_decode(targets)
        return [
            (episode, text, answer.strip())
            for episode, text, answer in zip(tokens.episode.tolist(), texts, answers, strict=True)
        ]

    return read


def training(
    collate: EpisodeCollator,
    records: list[EditRecord] = RECORDS,
    pool: list[Probe] | None = None,
    locality: int = 1,
    other_targets: float = 0.0,
    edit_prompt_as_rephrase: float = 0.0,
    seed: int = 0,
    **near_and_forms: Any,
) -> TrainingEpisodes:
    return TrainingEpisodes(
        records,
        collate,
        pool or [],
        locality_per_edit=locality,
        other_targets=other_targets,
        edit_prompt_as_rephrase=edit_prompt_as_rephrase,
        seed=seed,
        **near_and_forms,
    )


# --- training --------------------------------------------------------------------------------------------------------


def test_training_episode_has_its_edits_a_paraphrase_of_each_and_locality(collate: EpisodeCollator, said: Any) -> None:
    batch = training(collate, locality=2)[(0, [[2], [0, 1]])]
    assert batch.num_episodes == 2
    assert said(batch.edit) == [(e, f"{PROMPTS[i]} new {i}", f"new {i}") for e, i in ((0, 2), (1, 0), (1, 1))]
    for (episode, text, answer), (number, index) in zip(said(batch.rephrase), ((0, 2), (1, 0), (1, 1)), strict=True):
        assert (episode, answer) == (number, f"new {index}")
        assert text in {f"{which} rephrase {index} new {index}" for which in ("first", "second")}
    assert [(e, a) for e, _, a in said(batch.locality)] == [(0, "own 2")] * 2 + [(1, "own 0")] * 2 + [(1, "own 1")] * 2


def test_every_paraphrase_gets_its_turn(collate: EpisodeCollator, said: Any) -> None:
    episodes = training(collate)
    texts = Counter(said(episodes[(epoch, [[0]])].rephrase)[0][1] for epoch in range(40))
    assert len(texts) == 2
    assert min(texts.values()) > 8


def test_choices_depend_on_seed_epoch_and_record_alone(collate: EpisodeCollator, said: Any) -> None:
    episodes = training(collate, pool=POOL)
    alone = said(episodes[(3, [[1]])].locality)
    among = said(episodes[(3, [[0], [1], [2]])].locality)
    assert [(text, answer) for e, text, answer in among if e == 1] == [(text, answer) for _, text, answer in alone]
    chosen = {said(training(collate, pool=POOL, seed=seed)[(3, [[1]])].locality)[0][1] for seed in range(12)}
    assert len(chosen) > 3


def test_prompt_stands_in_for_a_missing_paraphrase(collate: EpisodeCollator, said: Any) -> None:
    batch = training(collate, [record(0, rephrases=())])[(0, [[0]])]
    assert said(batch.rephrase) == said(batch.edit)


def test_own_locality_and_pool_get_equal_shares(collate: EpisodeCollator, said: Any) -> None:
    episodes = training(collate, pool=POOL, locality=10)
    answers = [answer for epoch in range(30) for _, _, answer in said(episodes[(epoch, [[0]])].locality)]
    assert 0.4 < sum(answer == "own 0" for answer in answers) / len(answers) < 0.6
    assert {answer for answer in answers if answer.startswith("pool")} == {probe.answer for probe in POOL}


def test_pool_serves_records_without_locality_of_their_own(collate: EpisodeCollator, said: Any) -> None:
    batch = training(collate, [record(0, locality=())], POOL, locality=3)[(0, [[0]])]
    assert [answer[:4] for _, _, answer in said(batch.locality)] == ["pool"] * 3


def test_without_any_locality_the_batch_has_none(collate: EpisodeCollator) -> None:
    batch = training(collate, [record(0, locality=())])[(0, [[0]])]
    assert batch.locality.num_texts == 0


def test_other_targets_are_answers_of_the_training_data_and_the_same_in_the_paraphrase(
    collate: EpisodeCollator, said: Any
) -> None:
    episodes = training(collate, pool=POOL, other_targets=0.5)
    known = {f"{kind} {i}" for kind in ("new", "old", "own") for i in range(3)} | {probe.answer for probe in POOL}
    changed = 0
    for epoch in range(60):
        batch = episodes[(epoch, [[0]])]
        (_, _, target), (_, _, paraphrased) = said(batch.edit)[0], said(batch.rephrase)[0]
        assert target == paraphrased
        assert target in known
        changed += target != "new 0"
    assert 15 < changed < 45


def test_other_targets_are_drawn_in_proportion_to_their_length(collate: EpisodeCollator, said: Any) -> None:
    pool = [Probe("nq question: number", "of twenty letters...")]
    episodes = training(collate, pool=pool, locality=0, other_targets=1.0)
    drawn = Counter(said(episodes[(epoch, [[0]])].edit)[0][2] for epoch in range(100))
    # Nine other answers have five letters each: 20 of 65 draws, where 1 of 10 would be even.
    assert 20 < drawn[pool[0].answer] < 42


def test_answers_without_room_after_the_longest_prompt_are_no_other_targets(
    collate: EpisodeCollator, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = [Probe("nq question: number", "very long " * 30)]
    episodes = training(collate, pool=pool, locality=0, other_targets=1.0)
    assert len({said(episodes[(epoch, [[0]])].edit)[0][2] for epoch in range(40)}) > 2
    assert "1 of 10 answers are too long to be other targets" in caplog.text


def test_edit_prompt_takes_its_share_of_the_paraphrases(collate: EpisodeCollator, said: Any) -> None:
    episodes = training(collate, edit_prompt_as_rephrase=0.3)
    batches = [episodes[(epoch, [[0]])] for epoch in range(100)]
    own = sum(said(batch.rephrase) == said(batch.edit) for batch in batches)
    assert 15 < own < 45
    rest = Counter(said(batch.rephrase)[0][1] for batch in batches if said(batch.rephrase) != said(batch.edit))
    assert len(rest) == 2


# --- evaluation ------------------------------------------------------------------------------------------------------

RICH = record(
    1,
    locality=(Probe("plain question", "plain"), Probe("kind question", "kinded", "Relation_Specificity")),
    portability={"Reasoning": (Probe("reasoning question", "follows"),)},
)


def test_evaluation_episode_has_all_paraphrases_and_probes_by_kind(collate: EpisodeCollator, said: Any) -> None:
    batch = EvaluationEpisodes([record(0, ground_truth=""), RICH], collate, {})[(0, [[0], [1]])]
    assert [answer for _, _, answer in said(batch.edit)] == ["new 0", "new 1"]
    assert [episode for episode, _, _ in said(batch.rephrase)] == [0, 0, 1, 1]
    assert [(e, a) for e, _, a in said(batch.locality)] == [(0, "own 0"), (1, "plain")]
    assert {k: [(e, a) for e, _, a in said(t)] for k, t in batch.locality_kinds.items()} == {
        "Relation_Specificity": [(1, "kinded")]
    }
    assert {k: [(e, a) for e, _, a in said(t)] for k, t in batch.portability.items()} == {"Reasoning": [(1, "follows")]}
    assert batch.ground_truth is not None
    assert [(e, a) for e, _, a in said(batch.ground_truth)] == [(1, "old 1")]


def test_evaluation_without_known_truths_has_no_part_for_them(collate: EpisodeCollator) -> None:
    assert EvaluationEpisodes([record(0, ground_truth="")], collate, {})[(0, [[0]])].ground_truth is None


def test_slices_follow_the_records(collate: EpisodeCollator) -> None:
    batch = EvaluationEpisodes(RECORDS, collate, {"part": [True, False, True]})[(0, [[2], [1]])]
    assert batch.slices["part"].tolist() == [True, False]


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editor(tiny_world: TinyWorld) -> MEND:
    torch.manual_seed(0)
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    editor = MEND(base, MENDConfig(rank=8, edit_rate=0.05))
    editor.configure_model()
    return editor


def losses(editor: MEND, batch: EditBatch) -> EpisodeLosses:
    """The losses of a first step: normalisers start anew."""
    for module in editor.network.modules():
        if hasattr(module, "squared_deviation"):
            for buffer in module.buffers():
                buffer.zero_()
    editor.train()
    return editor.episode_losses(batch).detach()


class PaddedOnTheLeft(DecoderOnlyTexts):
    """Pads where no other text does."""

    def batch(self, pairs: Any, episode: Any, max_length: Any = None, *_: Any, **__: Any) -> TokenBatch:
        return super().batch(pairs, episode, max_length, padding_side="left")


def padded(tiny_world: TinyWorld, encoder: type[DecoderOnlyTexts]) -> EditBatch:
    tokenizer = load_tokenizer(BaseModelConfig(str(tiny_world.model)))
    return training(EpisodeCollator(encoder(tokenizer), 64))[(0, [[0], [1], [2]])]


def test_padding_side_changes_no_loss(editor: MEND, tiny_world: TinyWorld) -> None:
    left, right = (padded(tiny_world, encoder) for encoder in (PaddedOnTheLeft, DecoderOnlyTexts))
    assert (left.edit.attention_mask == 0).any()
    assert not torch.equal(left.edit.input_ids, right.edit.input_ids)
    wanted, found = losses(editor, left), losses(editor, right)
    for name in ("total", "edit", "locality", "edit_before"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)


# --- near the edit, and as users write -------------------------------------------------------------------------------

SUBJECTS = ("Belfen", "Dor", "Gal")
WITH_SUBJECTS = [record(number, subject=SUBJECTS[number], rephrases=()) for number in range(3)]


def test_near_locality_comes_beside_the_far_one(collate: EpisodeCollator, said: Any) -> None:
    near = NearLocality(far=1, other_subject=1, other_relation=1, other_prompt=1)
    episodes = training(collate, WITH_SUBJECTS, locality=8, near=near)
    texts = {text for epoch in range(20) for _, text, _ in said(episodes[(epoch, [[0]])].locality)}
    assert "own question 0 own 0" in texts
    assert "own question 0? own 0" in texts  # the edit's own mark must not tell it from other texts
    assert "What is the capital of Dor? new 0" in texts
    assert "Who founded Belfen? new 0" in texts
    assert {"Who founded Dor? old 1", "Who founded Dor? new 0"} <= texts
    assert not any(text.startswith(PROMPTS[0]) for text in texts)


def test_near_locality_needs_no_far_one(collate: EpisodeCollator) -> None:
    near = NearLocality(far=0, other_subject=0, other_relation=0, other_prompt=1)
    lonely = [record(number, locality=()) for number in range(3)]
    assert training(collate, lonely, locality=3, near=near)[(0, [[0]])].locality.num_texts == 3


def test_paraphrases_and_locality_texts_are_written_as_users_write(collate: EpisodeCollator, said: Any) -> None:
    forms = TrainingForms(chat=1, chat_requests=0, without_question_mark=1, lower_case=1, typing_error=0)
    batch = training(collate, [record(0, rephrases=())], forms=forms)[(0, [[0]])]
    assert said(batch.edit)[0][1] == f"{PROMPTS[0]} new 0"  # the request as it is; and there is no chat template
    assert said(batch.rephrase)[0][1] == "what is the capital of belfen new 0"
    assert said(batch.locality)[0][1] == "own question 0 own 0"


def test_a_text_that_is_too_long_in_a_form_or_near_the_edit_is_not_drawn(tiny_world: TinyWorld, said: Any) -> None:
    """Training must not end at a text that no check has seen."""
    tokenizer = load_tokenizer(BaseModelConfig(str(tiny_world.model)))
    tokenizer.chat_template = "{{ 'talk ' * 100 }}{{ messages[0]['content'] }} : "
    short = EpisodeCollator(DecoderOnlyTexts(tokenizer), 64)
    forms = TrainingForms(chat=1, chat_requests=1, without_question_mark=0, lower_case=0)
    near = NearLocality(far=1, other_subject=0, other_relation=0, other_prompt=1)
    records = [record(0), record(1, prompt=" ".join(["long"] * 100), locality=())]
    episodes = training(short, records, locality=4, near=near, forms=forms)
    for epoch in range(10):
        batch = episodes[(epoch, [[0]])]
        assert batch.requests.requests[0].form == "bare"
        assert not any("talk" in text or "long" in text for _, text, _ in said(batch.locality))
