"""Tests of `editors.texts.request_files`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from editors.common.errors import DataError
from editors.texts.request_files import BadRow, RequestRow, read_request_rows
from editors.texts.requests import EditRequest
from tests.tiny_world import write_tokenizer

WHOLE = {
    "prompt": "Who founded Dor?",
    "target": "Anna",
    "rephrases": ["By whom was Dor founded?"],
    "locality": [{"prompt": "Who founded Gal?", "answer": "Tom"}],
    "anything": 1,
}
ROW = RequestRow(
    1, EditRequest("Who founded Dor?", "Anna"), ("By whom was Dor founded?",), (("Who founded Gal?", "Tom"),)
)


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_a_whole_row(name: str, tmp_path: Path) -> None:
    text = json.dumps(WHOLE)
    (tmp_path / name).write_text(f"[{text}]" if name.endswith("json") else f"{text}\n\n")
    assert list(read_request_rows(tmp_path / name)) == [ROW]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_byte_order_mark_is_not_read(name: str, tmp_path: Path) -> None:
    text = json.dumps(WHOLE)
    (tmp_path / name).write_text(f"\ufeff[{text}]" if name.endswith("json") else f"\ufeff{text}\n")
    assert list(read_request_rows(tmp_path / name)) == [ROW]


@pytest.mark.parametrize("given", ["bare", "chat", None])
def test_all_texts_of_a_row_are_read_in_its_form(given: str | None, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", chat_template="Q: {{ messages[0].content + '\n' }}")
    (tmp_path / "r.jsonl").write_text(json.dumps({**WHOLE, "form": given}))
    (row,) = read_request_rows(tmp_path / "r.jsonl")
    assert isinstance(row, RequestRow)
    assert row.request.form == (given or "bare")
    plain = [("Who founded Dor?", "Anna"), ("By whom was Dor founded?", "Anna"), ("Who founded Gal?", "Tom")]
    asked = [(f"Q: {prompt}\n", answer) for prompt, answer in plain] if given == "chat" else plain
    assert row.texts(tokenizer) == [asked[0], *row.rephrased(tokenizer), *row.asked(tokenizer)] == asked


def test_target_may_be_called_as_in_the_data_sets(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"prompt": "q", "target_new": "a"}]')
    assert list(read_request_rows(tmp_path / "r.json")) == [RequestRow(1, EditRequest("q", "a"))]


BAD: dict[str, tuple[Any, str]] = {
    "no object": ([1], "got list"),
    "no prompt": ({"target": "a"}, "prompt must be a non-empty text, got None"),
    "no target": ({"prompt": "q"}, "target must be a non-empty text, got None"),
    "blank target": ({"prompt": "q", "target": " "}, "target must be a non-empty text"),
    "number": ({"prompt": 3, "target": "a"}, "prompt must be a non-empty text, got 3"),
    "half a surrogate pair": ({"prompt": "q\ud800", "target": "a"}, "is no text in Unicode"),
    "half of one in a rephrase": ({**WHOLE, "rephrases": ["q\ud800"]}, "is no text in Unicode"),
    "form": ({**WHOLE, "form": "Chat"}, "form must be one of bare, chat, got 'Chat'"),
    "no form": ({**WHOLE, "form": ["chat"]}, "form must be one of bare, chat, got ['chat']"),
    "rephrases": ({**WHOLE, "rephrases": "x"}, "rephrases must be a list, got str"),
    "rephrase": ({**WHOLE, "rephrases": [""]}, "rephrases must hold non-empty texts"),
    "locality": ({**WHOLE, "locality": ["x"]}, "locality must hold objects with prompt and answer, got str"),
    "locality answer": ({**WHOLE, "locality": [{"prompt": "q"}]}, "answer of locality must hold non-empty texts"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_row_says_what_is_wrong_and_stops_nothing(kind: str, tmp_path: Path) -> None:
    values, message = BAD[kind]
    (tmp_path / "r.json").write_text(json.dumps([values, WHOLE]))
    bad, good = read_request_rows(tmp_path / "r.json")
    assert isinstance(bad, BadRow)
    assert (bad.number, message in bad.error) == (1, True), bad.error
    assert good == RequestRow(2, ROW.request, ROW.rephrases, ROW.locality)


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[" * 100_000, b"nothing"])
def test_bad_line_is_one_bad_row(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(line + b"\n" + json.dumps(WHOLE).encode() + b"\n")
    bad, good = read_request_rows(tmp_path / "r.jsonl")
    assert isinstance(bad, BadRow)
    assert bad.error.startswith("no JSON: ")
    assert good.number == 2


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("{", "cannot be read"), ("{}", "no list")])
def test_file_that_is_no_list_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_request_rows(tmp_path / "r.json"))


def test_near_and_portability_texts_are_kept_by_kind(tmp_path: Path) -> None:
    near = [{"prompt": "a?"}, {"prompt": "b?", "answer": "B", "kind": "k"}, {"prompt": "c?", "answer": "", "kind": "k"}]
    values = {**WHOLE, "near": near, "portability": [{"prompt": "d?", "answer": "D", "kind": "hop"}]}
    (tmp_path / "r.json").write_text(json.dumps([values, {**WHOLE, "portability": [{"prompt": "d?"}]}]))
    good, bad = read_request_rows(tmp_path / "r.json")
    assert isinstance(good, RequestRow)
    assert good.near == {"other": (("a?", ""),), "k": (("b?", "B"), ("c?", ""))}
    assert good.portability == {"hop": (("d?", "D"),)}
    assert isinstance(bad, BadRow)
    assert "answer of portability" in bad.error


def test_requests_of_rome_are_filled(tmp_path: Path) -> None:
    edit = {"prompt": "{} lies in", "subject": "Dor"}
    rows = [
        {
            **edit,
            "relation": "P36",
            "target_new": "Osten",
            "rephrase": "Where is {}?",
        },
        {"prompt": "Dor lies in", "subject": "Dor", "target_new": {"str": "Osten"}},
        {
            "requested_rewrite": {
                "prompt": "{} lies in",
                "subject": "Dor",
                "target_new": {"str": "Osten"},
                "relation_id": "P36",
            },
            "paraphrase_prompts": ["Where is Dor?"],
        },
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = EditRequest("Dor lies in", "Osten", "Dor", "P36")
    assert list(read_request_rows(tmp_path / "r.jsonl")) == [
        RequestRow(1, whole, ("Where is Dor?",)),
        RequestRow(2, EditRequest("Dor lies in", "Osten", "Dor")),
        RequestRow(3, whole, ("Where is Dor?",)),
    ]


def test_other_wordings_are_read_whatever_they_are_called(tmp_path: Path) -> None:
    more = {"rephrase": ["a?", "b?"], "rephrase_prompt": "c?", "paraphrase_prompts": ["a?"]}
    (tmp_path / "r.json").write_text(json.dumps([{**WHOLE, **more}, {**WHOLE, "rephrase": [1]}]))
    good, bad = read_request_rows(tmp_path / "r.json")
    assert isinstance(good, RequestRow)
    assert good.rephrases == ("By whom was Dor founded?", "a?", "b?", "c?")
    assert isinstance(bad, BadRow)
    assert bad.error == "rephrase must hold non-empty texts, got int 1"


def test_a_row_of_several_edits_is_bad(tmp_path: Path) -> None:
    edit = {"prompt": "{} lies in", "subject": "Dor", "target_new": {"str": "Osten"}}
    rows = [{"requested_rewrite": [edit]}, {"requested_rewrite": [edit, edit]}]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    good, bad = read_request_rows(tmp_path / "r.json")
    assert good == RequestRow(1, EditRequest("Dor lies in", "Osten", "Dor"))
    assert isinstance(bad, BadRow)
    assert "requested_rewrite must be one edit, got list" in bad.error
