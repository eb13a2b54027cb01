"""Tests of the registry: methods of this project and of other packages, and how wrong declarations are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from editors.base_models.families.decoder_only import DecoderOnly
from editors.base_models.families.encoder_decoder import EncoderDecoder
from editors.common.errors import EditorError
from editors.making.protocol import EditMethod
from editors.making.registry import Method, RegistrationError, forget_methods, registered_method, registered_methods
from editors.texts.requests import EditRequest
from tests.documentation import importable, write_new_methods

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Installs packages: files by name, and entry points by name."""
    with importable(tmp_path):

        def installed(files: dict[str, str], **points: str) -> None:
            for name, text in files.items():
                (tmp_path / name).write_text(text)
            information = tmp_path / "other-1.dist-info"
            information.mkdir()
            (information / "METADATA").write_text("Name: other\nVersion: 1\n")
            lines = [f"{name} = {place}" for name, place in points.items()]
            (information / "entry_points.txt").write_text("\n".join(["[hyperedit.methods]", *lines]))

        yield installed


def declared(name: str) -> str:
    """A module that declares a method under this name."""
    return f"from editors.making.registry import Method\nMETHOD = Method({name!r}, 'nowhere:X', 'nowhere:Y')\n"


@pytest.mark.parametrize("name", ["ke", "mend", "serac"])
def test_methods_of_this_project_declare_what_is_there(name: str) -> None:
    method = registered_method(name)
    method.check()
    network, config = method.load_network()
    assert issubclass(network, EditMethod)
    assert is_dataclass(config)
    assert method.needs_training
    assert method.load_module().registered_name == name


def test_methods_of_another_package_are_found_and_gone_with_it(tmp_path: Path) -> None:
    own = set(registered_methods())
    with importable(write_new_methods(tmp_path)):
        assert set(registered_methods()) == own | {"my_step", "my_rates"}
        for name, trained in (("my_step", False), ("my_rates", True)):
            registered_method(name).check()
            assert registered_method(name).needs_training is trained
        with pytest.raises(RegistrationError, match=r"'my_step' learns nothing and has no Lightning module"):
            registered_method("my_step").load_module()
    assert set(registered_methods()) == own


@pytest.mark.parametrize(
    ("point", "content", "place", "fault"),
    [
        ("mine", "mend", "other:METHOD", r"declares method 'mend', and there is one already; rename it"),
        ("mine", "my-method", "other:METHOD", r"method name 'my-method': allowed are lower-case letters, digits and _"),
        ("mine", "2nd", "other:METHOD", r"method name '2nd'"),
        ("mine", "", "other:METHOD", r"method name ''"),
        (
            "mine",
            "mine",
            "missing_package:METHOD",
            r"\(missing_package:METHOD\) cannot be imported: .* Mend or uninstall",
        ),
        ("mine", "mine", "other:NOTHING", r"\(other:NOTHING\) cannot be imported"),
        ("mine", "mine", "other:Method", r"is a type; it must be a `Method`"),
    ],
)
def test_a_faulty_method_of_another_package_is_left_out_and_said_where_it_is_asked_for(
    install: Install, caplog: pytest.LogCaptureFixture, point: str, content: str, place: str, fault: str
) -> None:
    """The others can be used all the same."""
    before = set(registered_methods())
    forget_methods()
    install({"other.py": declared(content)}, **{point: place})
    assert set(registered_methods()) == before
    assert re.search(fault, caplog.text)
    with pytest.raises(RegistrationError, match=fault):
        registered_method(point)
    assert registered_method("mend").name == "mend"


def test_a_folder_of_methods_without_a_declaration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("editors.methods.ke.METHOD")
    forget_methods()
    with pytest.raises(RegistrationError, match=r"editors\.methods\.ke\.METHOD is a NoneType; it must be a `Method`"):
        registered_methods()
    monkeypatch.undo()
    assert "ke" in registered_methods()


@pytest.mark.parametrize("part", ["network", "config", "module"])
@pytest.mark.parametrize("place", ["editors.methods.mend.network:Nothing", "nowhere.at_all:X", "no colon", ""])
def test_a_part_that_is_not_there_is_named(part: str, place: str) -> None:
    changes: Any = {part: place}
    method = replace(registered_method("mend"), **changes)
    with pytest.raises(RegistrationError, match=r"method 'mend' declares .*Write it as 'module:name'"):
        method.check()


def test_a_reader_of_saved_edits_that_is_not_there_is_named() -> None:
    method = replace(registered_method("serac"), saved_edits={"some-format": "editors.methods.serac:nothing"})
    with pytest.raises(RegistrationError, match=r"declares 'editors.methods.serac:nothing'"):
        method.check()


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(EditorError, match=r"no editor 'mnd'; registered are: ke, mend, serac"):
        registered_method("mnd")


def test_a_method_says_what_it_needs() -> None:
    method = Method("here", "a:A", "a:B", needs_subject=True, encoder_decoder=False)
    method.require_answerable([EditRequest("Who founded Dor?", "Anna", subject="Dor")])
    with pytest.raises(
        EditorError, match=r"'here' edits at the subject's tokens, .*'Who founded Dor\?' names no subject"
    ):
        method.require_answerable([EditRequest("Who founded Dor?", "Anna")])
    method.require_family(DecoderOnly)
    with pytest.raises(EditorError, match="'here' edits decoder-only models"):
        method.require_family(EncoderDecoder)
    registered_method("mend").require_answerable([EditRequest("Who founded Dor?", "Anna")])
