"""Tests of the validation losses: records without paraphrases or without locality texts have some, too."""

from __future__ import annotations

import dataclasses
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
    episodes = EvaluationEpisodes(records, EpisodeCollator(editor.text_encoder, 64, "right"), {})
    evaluator = Evaluator(generate_in_validation=False)
    evaluator.update(editor, episodes[(0, [[i] for i in range(len(records))])], generate=False)
    scores = evaluator.compute(torch.device("cpu"))
    return {name.removeprefix("loss/"): value for name, value in scores.items() if name.startswith("loss/")}


def test_total_is_the_weighted_sum(editor: MEND) -> None:
    found = losses(editor, record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    assert found["total"] == pytest.approx(editor.c_edit * found["edit"] + editor.c_loc * found["locality_kl"])


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
    assert found["total"] == pytest.approx(editor.c_edit * found["edit"])
    whole = losses(editor, record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    both = losses(editor, record(rephrases=(PARAPHRASE,)), record(rephrases=(PARAPHRASE,), locality=LOCALITY))
    assert both["total"] == pytest.approx((found["total"] + whole["total"]) / 2)


def test_an_end_of_text_behind_answers_is_learned_but_not_scored(editor: MEND) -> None:
    """What is scored of the unedited model does not change."""

    def before(*, end_answers: bool) -> dict[str, float]:
        ended = MEND(dataclasses.replace(editor.base_model, end_answers=end_answers), editor.mend)
        ended.frozen, ended.network = editor.frozen, editor.network
        batch = EvaluationEpisodes(
            [record(rephrases=(PARAPHRASE,), locality=LOCALITY)], EpisodeCollator(ended.text_encoder, 64, "right"), {}
        )[(0, [[0]])]
        assert (batch.edit.answer_ids()[0][-1] == ended.tokenizer.eos_token_id) is end_answers
        evaluator = Evaluator(generate_in_validation=False)
        evaluator.update(ended, batch, generate=True)
        scores = evaluator.compute(torch.device("cpu"))
        return {name: score for name, score in scores.items() if name.startswith("before/")}

    assert before(end_answers=True) == before(end_answers=False)


def test_where_keys_and_values_cannot_be_kept_prompts_are_read_again(
    editor: MEND, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are the same."""

    def scores() -> dict[str, float]:
        episodes = EvaluationEpisodes(
            [record(rephrases=(PARAPHRASE,), locality=LOCALITY)], EpisodeCollator(editor.text_encoder, 64, "right"), {}
        )
        evaluator = Evaluator(generate_in_validation=False)
        evaluator.update(editor, episodes[(0, [[0]])], generate=True)
        return evaluator.compute(torch.device("cpu"))

    begun: list[bool] = []
    generate = FrozenLM.generate

    def recorded(frozen: FrozenLM, *arguments: Any) -> list[list[list[int]]]:
        begun.append(arguments[-1] is not None)
        return generate(frozen, *arguments)

    monkeypatch.setattr(FrozenLM, "generate", recorded)
    kept = scores()
    monkeypatch.setattr("editors.lm.prefix.is_complete", lambda *_: False)
    assert scores() == pytest.approx(kept)
    assert begun == [True, True, False, False]
