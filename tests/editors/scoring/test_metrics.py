"""Tests of `editors.scoring.metrics`: every measure on numbers worked out by hand, and sums over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from editors.scoring.metrics import (
    MetricTable,
    agreement,
    generated_match,
    normalise_text,
    probability_success,
    teacher_forced,
)
from editors.texts.batches import EncodedText, TokenBatch, collate_texts

VOCABULARY = 6


def batch(answers: list[list[int]], episode: list[int]) -> TokenBatch:
    """Texts of one prompt token (5) and an answer each."""
    texts = [EncodedText((5, *answer), 1, 1 + len(answer)) for answer in answers]
    return collate_texts(texts, episode, pad_id=0)


def saying(*tokens: int, strength: float = 9.0) -> Tensor:
    """`[N, V]` logits that put most probability on these tokens."""
    logits = torch.zeros(len(tokens), VOCABULARY)
    logits[range(len(tokens)), list(tokens)] = strength
    return logits


# --- teacher-forced --------------------------------------------------------------------------------------------------


def test_token_accuracy_is_a_mean_over_episodes_of_the_mean_over_texts() -> None:
    # Episode 0: texts of 1 and 4 tokens with 1 and 1 right; episode 1: none; episode 2: 2 of 2.
    tokens = batch([[1], [1, 2, 3, 4], [3, 4]], [0, 0, 2])
    measures = teacher_forced(saying(1, 0, 0, 0, 4, 3, 4), tokens, 3)
    values, present = measures["token_accuracy"]
    assert values.tolist() == [(1 + 1 / 4) / 2, 0, 1]
    assert present.tolist() == [True, False, True]
    assert measures["exact_match"][0].tolist() == [0.5, 0, 1]


def test_token_agreement_counts_equal_answers_right_or_wrong() -> None:
    tokens = batch([[1, 2], [3]], [0, 1])
    measures = agreement(saying(4, 4, 3), saying(4, 1, 3), tokens, 2)
    assert measures["token_agreement"][0].tolist() == [0.5, 1]
    assert measures["exact_agreement"][0].tolist() == [0, 1]


def test_probability_success_compares_means_per_token() -> None:
    # The new answer is longer: summed, its log-probability is lower; per token it is higher.
    new, true = batch([[1, 2, 3]], [0]), batch([[4]], [0])
    new_logits, true_logits = saying(1, 2, 3, strength=1.0), saying(4, strength=0.5)
    value, present = probability_success(new_logits, new, true_logits, true, 1)
    assert value.tolist() == [1]
    assert present.tolist() == [True]
    assert probability_success(saying(1, 2, 3, strength=0.1), new, true_logits, true, 1)[0].tolist() == [0]


def test_probability_success_needs_both_answers() -> None:
    new, true = batch([[1], [2]], [0, 1]), batch([[4]], [1])
    _, present = probability_success(saying(1, 2), new, saying(4), true, 2)
    assert present.tolist() == [False, True]


# --- generated -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("continuation", "answer", "exact", "starts"),
    [
        (" Paris", "Paris", True, True),
        (" paris.", "Paris", True, True),
        ("Paris, the capital", "Paris", True, True),
        (" Paris is large", "Paris", False, True),
        ("\nParis", "Paris", True, True),
        (" St. Louis. It is", "St. Louis", True, True),
        (" Washington, D.C. It is", "Washington, D.C.", True, True),
        (" Parisian", "Paris", False, True),
        (" London", "Paris", False, False),
        ("", "Paris", False, False),
        (" New   York\nYork", "New York", True, True),
        (" New\nYork", "New York", False, True),
        (' "Paris"', "Paris", True, True),
    ],
)
def test_generated_match(continuation: str, answer: str, exact: bool, starts: bool) -> None:
    measures = generated_match([continuation], [answer], torch.tensor([0]), 1)
    assert bool(measures["exact_match"][0]) is exact
    assert bool(measures["starts_with_answer"][0]) is starts


def test_generated_match_is_averaged_for_each_episode() -> None:
    measures = generated_match(["a", "b", "c"], ["a", "x", "c"], torch.tensor([0, 0, 2]), 3)
    values, present = measures["exact_match"]
    assert values.tolist() == [0.5, 0, 1]
    assert present.tolist() == [True, False, True]


def test_normalise_text() -> None:
    assert normalise_text("  The  Answer\t is:\n42!") == "the answer is: 42"


# --- the table -------------------------------------------------------------------------------------------------------


def test_table_leaves_absent_episodes_out() -> None:
    table = MetricTable()
    table.update("a/b", torch.tensor([1.0, 5.0, 0.0]), torch.tensor([True, False, True]))
    table.update("a/b", torch.tensor([1.0]), torch.tensor([True]))
    table.update("never", torch.tensor([1.0]), torch.tensor([False]))
    assert table.compute(torch.device("cpu")) == {"a/b": pytest.approx(2 / 3)}


def test_table_starts_anew_after_reset() -> None:
    table = MetricTable()
    table.update("a", torch.tensor([1.0]), torch.tensor([True]))
    table.reset()
    assert table.compute(torch.device("cpu")) == {}


def test_table_keeps_names_with_dots() -> None:
    table = MetricTable()
    table.update("locality_St. Louis/x", torch.tensor([1.0]), torch.tensor([True]))
    assert list(table.compute(torch.device("cpu"))) == ["locality_St. Louis/x"]


VALUES = [0.0, 1.0, 1.0, 0.25, 0.5]


def _table_of_a_process(rank: int, folder: str) -> None:
    """One process: the first has 4 values of "both" and some of "one", the second one value of "both"."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    table = MetricTable()
    everyone = torch.ones(5, dtype=torch.bool)
    mine = torch.tensor(VALUES[:4] if rank == 0 else VALUES[4:])
    table.update("both", mine, everyone[: len(mine)])
    if rank == 0:
        table.update("one", torch.tensor([0.5, 1.0]), everyone[:2])
    torch.save(table.compute(torch.device("cpu")), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_table_is_exact_over_processes_with_uneven_data(tmp_path: Path) -> None:
    multiprocessing.spawn(_table_of_a_process, (str(tmp_path),), nprocs=2)
    expected = {"both": pytest.approx(sum(VALUES) / 5), "one": pytest.approx(0.75)}
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [expected, expected]
