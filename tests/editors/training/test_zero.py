"""What `ZeRO` refuses before DeepSpeed is imported; `tests/distributed` trains with it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from editors.common.errors import EditorError
from editors.training import zero
from editors.training.zero import ZeRO, require_tested_versions

INSTALLED = {"lightning": "2.6.6", "deepspeed": "0.19.8"}


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Pretend that these versions are installed."""
    monkeypatch.setattr(zero, "version", {**INSTALLED, **versions}.__getitem__)


@pytest.mark.parametrize("versions", [{}, {"lightning": "2.6.9"}, {"deepspeed": "0.19.9"}])
def test_tested_versions_are_accepted(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    installed(monkeypatch, **versions)
    require_tested_versions()


@pytest.mark.parametrize(
    ("package", "found"),
    [("lightning", "2.7.0"), ("lightning", "2.6.5"), ("deepspeed", "0.20.0"), ("deepspeed", "0.16.9")],
)
def test_untested_versions_are_refused(monkeypatch: pytest.MonkeyPatch, package: str, found: str) -> None:
    installed(monkeypatch, **{package: found})
    with pytest.raises(EditorError, match=rf"{package} is {found}.*pip install '{package}>=.*trainer\.strategy ddp"):
        ZeRO(stage=2)


def test_missing_deepspeed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "deepspeed":
            raise PackageNotFoundError
        return INSTALLED[package]

    monkeypatch.setattr(zero, "version", version)
    with pytest.raises(EditorError, match=r"'deepspeed' is not installed.*pip install 'deepspeed>=0\.19\.8,<0\.20'"):
        ZeRO(stage=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": 2, "offload_parameters": True}, "offload_parameters needs stage 3, got stage 2"),
        ({"stage": 3, "keep_whole_below": 0}, "keep_whole_below must be at least 1, got 0"),
        ({"stage": 3, "live_elements": -1}, "live_elements must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str) -> None:
    installed(monkeypatch)
    with pytest.raises(EditorError, match=message):
        ZeRO(**arguments)


def test_deepspeed_is_told_what_may_stay_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    settings = ZeRO(stage=3, keep_whole_below=5, live_elements=7).config
    assert settings is not None
    found = {
        name: settings["zero_optimization"][f"stage3_{name}"]
        for name in ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
    }
    assert found == {"param_persistence_threshold": 5, "max_live_parameters": 7, "max_reuse_distance": 7}
