"""Tests of the validation losses: records without paraphrases or without locality texts have some, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules.episodes import EpisodeCollator, EvaluationEpisodes
from datamodules.records import EditRecord, Probe
from editors.base_model import BaseModelConfig
from editors.evaluation import Evaluator
from editors.mend.module import MEND
from editors.mend.network import MENDConfig
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
