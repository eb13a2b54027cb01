"""Tests of `editors.making.preparation`, with the direct method of `docs/adding_a_method.md`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.lm.frozen import FrozenLM
from editors.making.preparation import prepare
from editors.making.protocol import EditMethod
from editors.making.registry import registered_method
from tests.documentation import importable, write_new_methods
from tests.editors.making.test_protocol import Fixed
from tests.tiny_models import tiny_lm, tiny_model

TEXTS = ["5 17 8", "9 4 33 12"]
WEIGHTS = "0123"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with importable(write_new_methods(tmp_path_factory.mktemp("installed"))):
        yield


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm(tiny_model("llama"), num_blocks=2)


def new_method(lm: FrozenLM, **settings: Any) -> EditMethod:
    network, config = registered_method("my_step").load_network()
    method: EditMethod = network.build(lm.site_widths(), config(**settings))
    return method


def prepared(lm: FrozenLM, folder: Path, texts: list[str] = TEXTS, weights: str = WEIGHTS, **settings: Any) -> Any:
    method = new_method(lm, **settings)
    prepare(method, lm, texts, weights, folder)
    return method


def test_the_second_time_it_is_found_and_the_model_is_not_asked(
    lm: FrozenLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepared(lm, tmp_path)
    assert (first.power != 1).all()
    passes: list[Any] = []
    hook = lm.model.register_forward_pre_hook(lambda *arguments: passes.append(arguments))
    with caplog.at_level(logging.INFO):
        again = prepared(lm, tmp_path)
    hook.remove()
    assert passes == []
    assert torch.equal(again.power, first.power)
    assert "Preparation of MyStep found in" in caplog.text


@pytest.mark.parametrize("other", [{"texts": TEXTS[:1]}, {"weights": "4567"}, {"step": 2.0}], ids=str)
def test_what_was_prepared_otherwise_is_another_preparation(
    lm: FrozenLM, tmp_path: Path, other: dict[str, Any]
) -> None:
    prepared(lm, tmp_path)
    prepared(lm, tmp_path, **other)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("fault", ["damaged", "a wrong bit", "other tensors"])
def test_what_does_not_fit_is_prepared_anew(
    lm: FrozenLM, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """A newer version of a method may have other buffers under the same settings."""
    wanted = prepared(lm, tmp_path).power
    (path,) = tmp_path.iterdir()
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:-5])
    if fault == "a wrong bit":
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    method: Any = new_method(lm)
    if fault == "other tensors":
        method.register_buffer("more", torch.zeros(1))
    prepare(method, lm, TEXTS, WEIGHTS, tmp_path)
    assert "Prepared anew" in caplog.text
    assert torch.equal(method.power, wanted)
    caplog.clear()
    prepare(method, lm, TEXTS, WEIGHTS, tmp_path)
    assert "Prepared anew" not in caplog.text


def test_a_method_without_a_preparation_leaves_no_file(lm: FrozenLM, tmp_path: Path) -> None:
    prepare(Fixed(lm.site_widths(), 0), lm, TEXTS, WEIGHTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_kept_below_the_folder_that_the_environment_names(
    lm: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPEREDIT_CACHE", str(tmp_path / "cache"))
    prepare(new_method(lm), lm, TEXTS, WEIGHTS)
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 1


@dataclass(frozen=True)
class _Plain:
    """A configuration without settings."""


def test_what_is_prepared_in_a_trainers_test_can_be_used_by_autograd(lm: FrozenLM, tmp_path: Path) -> None:
    class Assigning(Fixed):
        """Makes its buffer anew."""

        def prepare(self, lm: FrozenLM, texts: Any) -> None:
            self.register_buffer("kept", torch.ones(2) * len(texts))

    method = Assigning(lm.site_widths(), 0)
    method.config = _Plain()
    with torch.inference_mode():
        prepare(method, lm, TEXTS, WEIGHTS, tmp_path)
    weight = torch.ones(2, requires_grad=True)
    (weight * method.get_buffer("kept")).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 2.0]
