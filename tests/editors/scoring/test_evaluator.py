"""Tests of the evaluator: validation losses, also of records without paraphrases or locality texts; given edits."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.episodes import EpisodeCollator, EvaluationEpisodes
from datamodules.records import EditRecord, Probe
from editors.base_models.loading import BaseModelConfig
from editors.lm.frozen import FrozenLM
from editors.methods.mend.module import MEND
from editors.methods.mend.network import MENDConfig
from editors.scoring.evaluator import Evaluator
from editors.texts.requests import EditRequest
from tests.tiny_world import TinyWorld

PROMPT, PARAPHRASE = "What is the capital of Belfen?", "Which city is the seat of Belfen?"
LOCALITY = (Probe("Who founded Dor?", "Anna Weld"),)


def record(**fields: Any) -> EditRecord:
    return EditRecord(PROMPT, "Osten", **fields)


@pytest.fixture(scope="module")
def editor(tiny_world: TinyWorld) -> MEND:
    torch.manual_seed(0)
    base = BaseModelConfig(str(tiny_world.model), dtype="float32", num_blocks=2)
    editor = MEND(base, MENDConfig(rank=8, edit_rate=0.05))
    editor.configure_model()
    return editor.eval()


def losses(editor: MEND, *records: EditRecord) -> dict[str, float]:
    """The losses of a validation batch, by name."""
    episodes = EvaluationEpisodes(records, EpisodeCollator(editor.lm.texts, 64), {})
    evaluator = Evaluator(editor.lm, editor.network, editor.loss_weights)
    evaluator.update(episodes[(0, [[i] for i in range(len(records))])], generate=False)
    scores = evaluator.compute(torch.device("cpu"))
    return {name.removeprefix("loss/"): value for name, value in scores.items() if name.startswith("loss/")}


def test_total_is_the_weighted_sum(editor: MEND) -> None:
    found = losses(editor, record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    assert found["total"] == pytest.approx(
        editor.settings.c_edit * found["edit"] + editor.settings.c_loc * found["locality_kl"]
    )


def test_without_a_paraphrase_the_edit_loss_is_that_of_the_edit_prompt(editor: MEND) -> None:
    """In training, too. A batch may hold records with and without."""
    own = losses(editor, record(rephrases=(PROMPT,), locality=LOCALITY))
    assert losses(editor, record(locality=LOCALITY)) == pytest.approx(own)
    other = losses(editor, record(rephrases=(PARAPHRASE,)))["edit"]
    assert other != pytest.approx(own["edit"])
    mixed = losses(editor, record(), record(rephrases=(PARAPHRASE,)))
    assert mixed["edit"] == pytest.approx((own["edit"] + other) / 2)


def test_without_locality_texts_the_total_is_that_of_the_edit_loss(editor: MEND) -> None:
    found = losses(editor, record(rephrases=(PARAPHRASE,)))
    assert found.keys() == {"edit", "total"}
    assert found["total"] == pytest.approx(editor.settings.c_edit * found["edit"])
    whole = losses(editor, record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    both = losses(editor, record(rephrases=(PARAPHRASE,)), record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    assert both["total"] == pytest.approx((found["total"] + whole["total"]) / 2)


def test_an_end_of_text_behind_answers_is_learned_but_not_scored(editor: MEND) -> None:
    """What is scored of the unedited model does not change."""

    def before(*, end_answers: bool) -> dict[str, float]:
        config = dataclasses.replace(editor.base_model, end_answers=end_answers)
        ended = FrozenLM(config, editor.lm.model, editor.tokenizer)
        batch = EvaluationEpisodes(
            [record(rephrases=(PARAPHRASE,), locality=LOCALITY)], EpisodeCollator(ended.texts, 64), {}
        )[(0, [[0]])]
        assert (batch.edit.answer_ids()[0][-1] == ended.tokenizer.eos_token_id) is end_answers
        evaluator = Evaluator(ended, editor.network)
        evaluator.update(batch, generate=True)
        scores = evaluator.compute(torch.device("cpu"))
        return {name: score for name, score in scores.items() if name.startswith("before/")}

    assert before(end_answers=True) == before(end_answers=False)


def test_where_keys_and_values_cannot_be_kept_prompts_are_read_again(
    editor: MEND, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are the same."""

    def scores() -> dict[str, float]:
        episodes = EvaluationEpisodes(
            [record(rephrases=(PARAPHRASE,), locality=LOCALITY)], EpisodeCollator(editor.lm.texts, 64), {}
        )
        evaluator = Evaluator(editor.lm, editor.network)
        evaluator.update(episodes[(0, [[0]])], generate=True)
        return evaluator.compute(torch.device("cpu"))

    continued: list[bool] = []
    generate = FrozenLM.generate

    def recorded(lm: FrozenLM, *arguments: Any) -> list[list[list[int]]]:
        continued.append(arguments[3] is not None)
        return generate(lm, *arguments)

    monkeypatch.setattr(FrozenLM, "generate", recorded)
    expected = scores()
    monkeypatch.setattr(FrozenLM, "can_continue_from_kv_cache", False)
    assert scores() == pytest.approx(expected)
    assert continued == [True, True, False, False]


def test_a_given_edit_of_one_episode_is_scored_in_all(editor: MEND) -> None:
    """As if it were repeated for each; what the method would make of the batch is not asked."""
    records = [record(rephrases=(PARAPHRASE,), locality=LOCALITY), EditRecord("Who founded Fen?", "Lume")]
    batch = EvaluationEpisodes(records, EpisodeCollator(editor.lm.texts, 64), {})[(0, [[0], [1]])]
    with torch.no_grad():
        edit = editor.network.make(editor.lm, editor.lm.read([[EditRequest("Who founded Gal?", "Velda")]]))
    evaluator = Evaluator(editor.lm, editor.network, editor.loss_weights)
    found = evaluator.scores(batch, edit, generate=True)
    torch.testing.assert_close(evaluator.scores(batch, edit.select([0, 0]), generate=True), found)
    own = evaluator.scores(batch, generate=True)
    assert own.keys() == found.keys()
    assert not torch.equal(own["loss/edit"][0], found["loss/edit"][0])


@pytest.mark.slow
def test_scoring_needs_no_training_library(editor: MEND) -> None:
    """In a fresh process: build a method, score its edit."""
    script = """
import sys
import torch
from editors import BaseModelConfig, EditRequest, load_base_model, load_tokenizer
from editors.lm.frozen import FrozenLM
from editors.making.registry import registered_method
from editors.scoring.evaluator import Evaluator
from editors.texts.episodes import EditBatch

config = BaseModelConfig(sys.argv[1], dtype="float32", num_blocks=2)
lm = FrozenLM(config, load_base_model(config), load_tokenizer(config))
network, settings = registered_method("mend").load_network()
method = network.build(lm.site_widths(), settings(rank=4)).eval()
requests = lm.read([[EditRequest("Who founded Dor?", "Osten")]])
evaluator = Evaluator(lm, method)
evaluator.update(EditBatch(requests, requests.tokens, requests.tokens), generate=True)
assert len(evaluator.compute(torch.device("cpu"))) > 10
unwanted = {"lightning", "pytorch_lightning", "deepspeed", "jsonargparse", "omegaconf"}
print(sorted(unwanted & set(sys.modules)))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, editor.base_model.name], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
