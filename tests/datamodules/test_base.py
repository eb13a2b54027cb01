"""Tests of `EditDataModule`: leaks, limits, slices, hashes, loaders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.base import EditDataModule
from datamodules.locality_pool import read_locality_pool
from datamodules.records import EditRecord, Probe
from datamodules.sampling import EpisodeLoader
from datamodules.sources import ZsRE
from editors.base_models.loading import BaseModelConfig
from editors.common.errors import DataError
from editors.methods.mend.module import MEND
from tests.tiny_world import COUNTS, TinyWorld


@dataclass
class Given:
    """A source of given records; counts how often it is read."""

    records: list[EditRecord]
    reads: list[bool] = field(default_factory=list)

    def read(self, folder: Path, *, skip_invalid: bool) -> list[EditRecord]:
        self.reads.append(skip_invalid)
        return self.records


def record(number: int, template: str = "Who founded {}?", **fields: Any) -> EditRecord:
    subject = f"Town{number}"
    return EditRecord(template.format(subject), f"new {number}", subject, **{"ground_truth": f"old {number}", **fields})


def module(world: TinyWorld, **settings: Any) -> EditDataModule:
    """A data module over the tiny world's files, set up."""
    splits = {split: [ZsRE(f"{split}.json")] for split in COUNTS}
    made = EditDataModule(BaseModelConfig(str(world.model)), **{"path": str(world.data), **splits, **settings})
    made.setup("fit")
    return made


def given(world: TinyWorld, **splits: Any) -> EditDataModule:
    """A data module over given records: numbers stand for records."""
    settings = {name: value for name, value in splits.items() if name not in COUNTS}
    records = {
        split: [Given([r if isinstance(r, EditRecord) else record(r) for r in splits.get(split, [])])]
        for split in COUNTS
    }
    return module(world, **records, **settings)


def test_splits_are_read_once(tiny_world: TinyWorld) -> None:
    source = Given([record(1)])
    made = module(tiny_world, train=[source], val=[], test=[], skip_invalid=True)
    made.setup("test")
    assert source.reads == [True]


def test_the_editors_tokenizer_serves_the_data_too(tiny_world: TinyWorld) -> None:
    """Reading a GGUF file for another one takes seconds."""
    model = BaseModelConfig(str(tiny_world.model))
    for trained, same in ((model, True), (replace(model, end_answers=True), False)):
        data, editor = EditDataModule(model, [], [], []), MEND(trained)
        data.trainer = SimpleNamespace(lightning_module=editor)  # type: ignore[assignment]
        assert (data.tokenizer is editor.tokenizer) == same


def test_sources_of_a_split_are_joined(tiny_world: TinyWorld) -> None:
    made = module(tiny_world, train=[ZsRE("train.json"), Given([record(1)])])
    assert len(made.records["train"]) == COUNTS["train"] + 1


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_leaky_splits_are_refused(tiny_world: TinyWorld) -> None:
    with pytest.raises(DataError, match=r"(?s)train and test share 1 subject.*Town2.*on_leak: drop"):
        given(tiny_world, train=[1, 2], val=[3], test=[2])


def test_leaky_records_are_dropped_from_the_earlier_split(tiny_world: TinyWorld) -> None:
    made = given(tiny_world, train=[1, 2, 3], val=[3, 4], test=[2, 4, 5], on_leak="drop")
    numbers = {split: [int(r.subject[4:]) for r in records] for split, records in made.records.items()}
    assert numbers == {"train": [1], "val": [3], "test": [2, 4, 5]}


def test_leaky_records_stay_with_a_warning(tiny_world: TinyWorld, caplog: pytest.LogCaptureFixture) -> None:
    made = given(tiny_world, train=[1, 2], test=[2], on_leak="warn")
    assert len(made.records["train"]) == 2
    assert "results overstate" in caplog.text


def test_running_texts_are_read_from_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(" = Title = \nText\n")
    (tmp_path / "texts.json").write_text('["a", "b"]')
    files = ["wiki.txt", "texts.json"]
    made = EditDataModule(BaseModelConfig("none"), [], [], [], path=str(tmp_path), running_texts=files)
    assert made.texts() == {"wiki.txt": ["Text"], "texts.json": ["a", "b"]}


# --- limits and checks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "kept"), [(None, 8), (4, 4), (1, 1), (8, 8), (99, 8)])
def test_limit_val_takes_records_spread_evenly(tiny_world: TinyWorld, limit: int | None, kept: int) -> None:
    whole, limited = module(tiny_world).records["val"], module(tiny_world, limit_val=limit).records
    assert limited["val"] == whole[:: 8 // kept]
    assert (len(limited["train"]), len(limited["test"])) == (COUNTS["train"], COUNTS["test"])


LEAST = {
    "episodes_per_batch": 1,
    "edits_per_episode": 1,
    "eval_batch_size": 1,
    "limit_val": 1,
    "locality_per_edit": 0,
    "num_workers": 0,
    "max_length": 2,
}


@pytest.mark.parametrize("name", LEAST)
def test_numbers_have_a_range(tiny_world: TinyWorld, name: str) -> None:
    made = {split: [Given([])] for split in COUNTS}
    module(tiny_world, **made, **{name: LEAST[name]})
    with pytest.raises(DataError, match=f"{name} must be at least {LEAST[name]}, got {LEAST[name] - 1}"):
        module(tiny_world, **made, **{name: LEAST[name] - 1})


@pytest.mark.parametrize("name", ["other_targets", "edit_prompt_as_rephrase"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_lie_between_0_and_1(tiny_world: TinyWorld, name: str, share: float) -> None:
    with pytest.raises(DataError, match=f"{name} is a share between 0 and 1, got {share}"):
        module(tiny_world, **{name: share})


def test_training_needs_records(tiny_world: TinyWorld) -> None:
    with pytest.raises(DataError, match=r"no training record; name a source in data\.train"):
        given(tiny_world, test=[1]).train_dataloader()


def test_missing_file_is_named(tiny_world: TinyWorld) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read .*check the path"):
        module(tiny_world, train=[ZsRE("nowhere.json")])


# --- texts that cannot be encoded ------------------------------------------------------------------------------------

LONG = "very " * 40 + "long"


def overlong(world: TinyWorld, tmp_path: Path, **settings: Any) -> EditDataModule:
    """A data module with five too long texts: of training, validation, test (a portability question) and the pool."""
    questions = ["who lives here", f"who lives in {LONG}"]
    (tmp_path / "pool.json").write_text(json.dumps([{"question": q, "answer": ["x"]} for q in questions]))
    chain = {"Reasoning": (Probe(LONG, "x"),)}
    twice = [record(2, rephrases=(LONG,), source="train.json row 1")] * 2
    splits = {
        "train": [record(1, portability=chain, ground_truth=LONG), *twice, record(3, locality=(Probe("Who?", LONG),))],
        "val": [record(4), record(5, ground_truth=LONG, source="val.json row 1")],
        "test": [record(6), record(7, portability=chain, source="test.json row 1")],
    }
    pool = {"path": str(tmp_path), "locality_pool": ["pool.json"]}
    return given(world, **splits, **pool, **{"max_length": 40, **settings})


def test_texts_that_are_too_long_are_reported_at_once_when_the_data_are_read(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data: 5 of 9 row\(s\) are broken") as error:
        overlong(tiny_world, tmp_path)
    said = str(error.value)
    places = ["train.json row 1: prompt 'very", "train: prompt 'Who?'", "val.json row 1", "test.json row 1"]
    assert [said.count(place) for place in [*places, "pool.json row 1: prompt 'nq question"]] == [1] * 5
    assert said.count("tokens, but data.max_length is 40") == 5
    assert "raise data.max_length" in said
    assert "skip_invalid: true" in said


def test_records_with_too_long_texts_may_be_left_out(
    tiny_world: TinyWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = overlong(tiny_world, tmp_path, skip_invalid=True)
    numbers = {split: [int(r.subject[4:]) for r in records] for split, records in made.records.items()}
    assert numbers == {"train": [1], "val": [4], "test": [6]}
    assert [probe.prompt for probe in made.pool] == ["nq question: who lives here"]
    assert "5 of 9 row(s) are broken" in caplog.text


def test_texts_within_the_limit_are_kept(tiny_world: TinyWorld, tmp_path: Path) -> None:
    assert len(overlong(tiny_world, tmp_path, max_length=400).records["train"]) == 4


# --- locality pool ---------------------------------------------------------------------------------------------------


def test_pool_files_are_read_from_the_data_folder(tiny_world: TinyWorld, tmp_path: Path) -> None:
    rows = [{"question": f"what is thing {i}", "answer": [f"thing {i}", "other"]} for i in range(3)]
    (tmp_path / "pool.json").write_text(json.dumps(rows))
    made = module(
        tiny_world, path=str(tmp_path), train=[Given([record(1)])], val=[], test=[], locality_pool=["pool.json"]
    )
    assert [probe.answer for probe in made.pool] == ["thing 0", "thing 1", "thing 2"]
    assert made.pool == read_locality_pool(tmp_path / "pool.json")
    batch = next(iter(made.train_dataloader()))
    assert batch.locality.num_texts == 1


def test_pool_questions_of_the_test_split_are_leaks(tiny_world: TinyWorld, tmp_path: Path) -> None:
    questions = ["who founded Town2", "who founded Town9"]
    (tmp_path / "pool.json").write_text(json.dumps([{"question": q, "answer": ["x"]} for q in questions]))
    settings = {"path": str(tmp_path), "train": [1], "test": [2], "locality_pool": ["pool.json"]}
    with pytest.raises(DataError, match=r"(?s)locality pool and test share 1 edit prompt.*\(pool\.json row 0\)"):
        given(tiny_world, **settings)
    assert [probe.prompt for probe in given(tiny_world, **settings, on_leak="drop").pool] == [
        "nq question: who founded Town9"
    ]


# --- loaders ---------------------------------------------------------------------------------------------------------


def test_evaluation_loaders_score_every_record_once(tiny_world: TinyWorld) -> None:
    made = module(tiny_world, eval_batch_size=3)
    for split, loader in (("val", made.val_dataloader()), ("test", made.test_dataloader())):
        assert isinstance(loader, EpisodeLoader)
        assert sum(batch.num_episodes for batch in loader) == COUNTS[split]


def test_no_loader_for_an_empty_split(tiny_world: TinyWorld) -> None:
    assert given(tiny_world, train=[1]).val_dataloader() == []


def test_training_batches_have_the_asked_shape(tiny_world: TinyWorld) -> None:
    made = module(tiny_world, episodes_per_batch=3, edits_per_episode=2, locality_per_edit=2)
    for batch in made.train_dataloader():
        assert batch.num_episodes == 3
        assert (batch.edit.num_texts, batch.rephrase.num_texts, batch.locality.num_texts) == (6, 6, 12)


def test_position_is_given_to_the_loader_made_later(tiny_world: TinyWorld) -> None:
    whole = [batch.edit.input_ids.tolist() for batch in module(tiny_world, episodes_per_batch=4).train_dataloader()]
    resumed = module(tiny_world, episodes_per_batch=4)
    resumed.load_state_dict({"yielded": 2})
    loader = resumed.train_dataloader()
    assert resumed.state_dict() == {"yielded": 2, "train_hash": resumed.data_hash()["train"]}
    assert [batch.edit.input_ids.tolist() for batch in loader] == whole[2:]
    assert len(list(resumed.train_dataloader())) == len(whole)


def test_position_is_given_to_the_loader_made_before(tiny_world: TinyWorld) -> None:
    """DeepSpeed restores a checkpoint after the loaders were made."""
    resumed = module(tiny_world, episodes_per_batch=4)
    loader = resumed.train_dataloader()
    whole = len(loader)
    resumed.load_state_dict({"yielded": 2})
    assert len(list(loader)) == whole - 2
    assert len(list(resumed.train_dataloader())) == whole


def test_training_is_not_continued_on_other_data(tiny_world: TinyWorld) -> None:
    before, other = given(tiny_world, train=[1], val=[3]), given(tiny_world, train=[2], val=[3])
    before.train_dataloader()
    state = before.state_dict()
    given(tiny_world, train=[1], val=[4]).load_state_dict(state)
    hashes = [made.data_hash()["train"][:12] for made in (before, other)]
    with pytest.raises(DataError, match=rf"{hashes[0]} of its .*, here {hashes[1]}\. .*--trainer\.default_root_dir"):
        other.load_state_dict(state)
    other.load_state_dict({"yielded": 0})  # as saved before there was a hash


def test_position_means_nothing_outside_training(tiny_world: TinyWorld) -> None:
    tested = module(tiny_world, episodes_per_batch=4)
    tested.trainer = SimpleNamespace(  # type: ignore[assignment]
        state=SimpleNamespace(fn=TrainerFn.TESTING), global_rank=0, world_size=1
    )
    tested.load_state_dict({"yielded": 2, "train_hash": "of other data"})
    loader = tested.train_dataloader()
    assert len(list(loader)) == len(loader)


# --- slices ----------------------------------------------------------------------------------------------------------


def test_templates_unseen_in_training_are_a_slice(tiny_world: TinyWorld) -> None:
    new = [record(8, "Where was {} built?"), record(9, "Where was {} built?")]
    loader = given(tiny_world, train=[1], val=[2], test=[3, *new]).test_dataloader()
    assert isinstance(loader, EpisodeLoader)
    flags = [flag for batch in loader for flag in batch.slices["unseen_template"].tolist()]
    assert sorted(flags) == [False, True, True]


def test_templates_of_paraphrases_are_seen(tiny_world: TinyWorld) -> None:
    """The outer loss is on them."""
    new = [record(8, "Where was {} built?"), record(9, "Who owns {}?")]
    trained = record(1, rephrases=(record(1, "Who owns {}?").prompt,))
    loader = given(tiny_world, train=[trained], val=[2], test=new).test_dataloader()
    assert isinstance(loader, EpisodeLoader)
    flags = {flag for batch in loader for flag in batch.slices["unseen_template"].tolist()}
    assert flags == {True, False}


@pytest.mark.parametrize("templates", [("Who founded {}?",), ("Where was {} built?",)])
def test_no_slice_where_all_or_no_templates_are_new(tiny_world: TinyWorld, templates: tuple[str, ...]) -> None:
    loader = given(tiny_world, train=[1], test=[record(9, template) for template in templates]).test_dataloader()
    assert isinstance(loader, EpisodeLoader)
    assert next(iter(loader)).slices == {}


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_data_hash_is_of_what_the_records_say(tiny_world: TinyWorld) -> None:
    base = given(tiny_world, train=[1], val=[2], test=[3])
    assert (
        given(tiny_world, train=[record(1, source="elsewhere row 9")], val=[2], test=[3]).data_hash()
        == base.data_hash()
    )
    other = given(tiny_world, train=[record(1, rephrases=("By whom?",))], val=[2], test=[3]).data_hash()
    assert other["train"] != base.data_hash()["train"]
    assert other["val"] == base.data_hash()["val"]


def test_data_hash_has_the_locality_pool_where_there_is_one(tiny_world: TinyWorld, tmp_path: Path) -> None:
    def hashes(answer: str) -> dict[str, str]:
        (tmp_path / "pool.json").write_text(json.dumps([{"question": "who lives here", "answer": [answer]}]))
        return given(tiny_world, train=[1], path=str(tmp_path), locality_pool=["pool.json"]).data_hash()

    plain = given(tiny_world, train=[1]).data_hash()
    assert plain.keys() == COUNTS.keys()
    assert hashes("x") == {**plain, "locality_pool": hashes("x")["locality_pool"]}
    assert hashes("x")["locality_pool"] != hashes("y")["locality_pool"]
