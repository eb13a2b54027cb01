"""Tests of files that build on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from editors.common.errors import UsageError
from editors.training.run.errors import ConfigurationError
from editors.training.run.parser import ConfigFile, RunParser

LOWEST = "steps: 1000\nrate: 0.5\ntags: [a, b]\n"


def parsed(*arguments: str) -> dict[str, Any]:
    parser = RunParser(parser_mode="omegaconf")
    parser.add_argument("--config", action=ConfigFile)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--tags", type=list[str], default=[])
    values = parser.parse_args(list(arguments)).as_dict()
    return {key: value for key, value in values.items() if key != "config"}


def write(folder: Path, **files: str) -> Path:
    """Write files of these names; return the last one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{[*files][-1]}.yaml"


def test_a_file_overrides_single_keys_of_those_it_builds_on_and_adds_to_their_lists(tmp_path: Path) -> None:
    own = write(tmp_path, low=LOWEST, own="config: [low.yaml]\nrate: 0.1\ntags+: [c]\n")
    assert parsed(f"--config={own}") == {"steps": 1000, "rate": 0.1, "tags": ["a", "b", "c"]}


def test_where_the_key_stands_makes_no_difference(tmp_path: Path) -> None:
    own = write(tmp_path, low=LOWEST, own="rate: 0.1\nconfig: [low.yaml]\n")
    assert parsed(f"--config={own}")["rate"] == 0.1


def test_files_build_on_files_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, low=LOWEST, middle="config: [low.yaml]\nsteps: 10\n", other="rate: 0.2\nsteps: 20\n")
    own = write(tmp_path / "sub", own="config: [../middle.yaml, ../other.yaml]\nrate: 0.3\n")
    assert parsed(f"--config={own}", "--steps=30") == {"steps": 30, "rate": 0.3, "tags": ["a", "b"]}
    assert parsed("--steps=30", f"--config={own}")["steps"] == 20


def test_a_configuration_in_place_of_a_file() -> None:
    assert parsed("--config={steps: 3}")["steps"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config: [nowhere.yaml]\n", r"own\.yaml builds on nowhere\.yaml, which does not exist; .*relative to"),
        ("config: [own.yaml]\n", r"own\.yaml builds on own\.yaml, which builds on itself"),
        ("config: [round.yaml]\n", r"round\.yaml builds on own\.yaml, which builds on itself"),
        ("config: low.yaml\n", r"own\.yaml: config must be a list of files to build on, got 'low\.yaml'"),
        ("config: [1]\n", r"must be a list of files to build on, got \[1\]"),
    ],
)
def test_what_a_file_cannot_build_on(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, low=LOWEST, round="config: [own.yaml]\n")
    with pytest.raises(UsageError, match=message):
        parsed(f"--config={write(tmp_path, own=text)}")


@pytest.mark.parametrize("text", ["steps: [\n", "nonsense", "- 1\n"])
def test_what_is_wrong_with_a_file_is_still_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="config"):
        parsed(f"--config={write(tmp_path, own=text)}")


def test_the_processs_own_arguments_are_read_in_present_names(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = RunParser(parser_mode="omegaconf")
    parser.add_argument("--model", type=str)
    monkeypatch.setattr("sys.argv", ["train.py", "--model", "editors.mend.module.MEND"])
    assert parser.parse_args().model == "editors.methods.mend.module.MEND"
