"""Tests of class paths of earlier versions."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest
import yaml

from editors.training.run.moved import MOVED, current_argument, current_file


@pytest.mark.parametrize("old", MOVED)
def test_the_new_place_exists_and_the_old_one_does_not(old: str) -> None:
    assert import_module(MOVED[old])
    assert find_spec(old) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("editors.mend.module.MEND", "editors.methods.mend.module.MEND"),
        ("editors.base.Editor", "editors.training.module.Editor"),
        ("editors.base_model.BaseModelConfig", "editors.base_models.loading.BaseModelConfig"),
        ("editors.cache.store.PrefixCache", "editors.lm.cache.store.PrefixCache"),
    ],
)
def test_old_names_are_replaced_wherever_they_stand(old: str, new: str, caplog: pytest.LogCaptureFixture) -> None:
    assert current_argument(old) == new
    assert current_argument(f"--model={old}") == f"--model={new}"
    assert current_file(f"a: {old}\nb: [{old}]\n") == f"a: {new}\nb: [{new}]\n"
    assert [record.message for record in caplog.records] == [
        f"{old} is now {new}; write the new name in your configuration."
    ] * 3


@pytest.mark.parametrize(
    "text",
    [
        "editors.methods.mend.module.MEND",
        "editors.base_models.loading.BaseModelConfig",
        "editors.mender.module.Own",
        "my.editors.mend.module.MEND",
        "runs/editors.mend.module",
        "editors.mend",
    ],
)
def test_other_texts_stay(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert current_argument(text) == text
    assert caplog.records == []


def test_keys_of_training_are_gathered_in_their_section(caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"c_edit": 0.3, "mend": {"rank": 8}, "warmup_steps": 2, "training": {"warmup_steps": 5}}
    content = yaml.safe_dump({"model": {"class_path": "a.MEND", "init_args": arguments}})
    found = yaml.safe_load(current_file(content))["model"]["init_args"]
    assert found == {"mend": {"rank": 8}, "training": {"c_edit": 0.3, "warmup_steps": 5}}
    assert "model.c_edit is now model.training.c_edit" in caplog.text
    assert current_argument("--model.c_edit=0.3") == "--model.training.c_edit=0.3"
    assert current_argument("--model.prefix_cache.folder=x") == "--model.training.prefix_cache.folder=x"
    assert current_argument("--model.init_args.c_edit=3") == "--model.init_args.training.c_edit=3"
    assert current_argument("--model.c_edited=0.3") == "--model.c_edited=0.3"


@pytest.mark.parametrize(("value", "stays"), [(1, False), (3, True)])
def test_options_that_are_gone_are_left_out_where_they_did_nothing(value: int, stays: bool) -> None:
    source = {"class_path": "datamodules.ZsRE", "init_args": {"file": "a.json", "repeat": value}}
    sample = {"class_path": "datamodules.Sample", "init_args": {"source": source, "repeat": 1}}
    data = {
        "class_path": "datamodules.EditDataModule",
        "init_args": {"padding_side": "right", "train": [source, sample]},
    }
    found = yaml.safe_load(current_file(yaml.safe_dump({"data": data})))["data"]["init_args"]
    assert "padding_side" not in found
    assert ("repeat" in found["train"][0]["init_args"]) is stays
    assert found["train"][1]["init_args"]["repeat"] == 1


@pytest.mark.parametrize("content", ["", "5", "a: [", "- model", "model: a.MEND", "model:\n  init_args: 3\n"])
def test_what_has_no_old_key_stays_as_it_is(content: str) -> None:
    assert current_file(content) == content
