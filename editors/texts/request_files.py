"""Edit requests from JSON and JSONL files, row by row: a bad row says what is wrong with it and stops nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editors.common.errors import DataError, EditorError
from editors.texts.forms import in_form
from editors.texts.json_documents import parsed, read_file, shown
from editors.texts.requests import EditRequest, about, require_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# The kind of near and portability texts that name none.
_OTHER = "other"
# What data sets call other wordings; each holds one text or a list of them.
_WORDINGS = ("rephrase", "rephrase_prompt", "paraphrase_prompts")
_REWRITE = "requested_rewrite"


@dataclass(frozen=True)
class RequestRow:
    """One row of a file.

    Args:
        number: its place in the file, from 1: the line of a JSONL file, the entry of a JSON list.
        request: the edit.
        rephrases: other wordings of the prompt, to test whether they give the new answer too. They and the locality
            questions are asked in the request's form.
        locality: questions with answers, to test whether the model still says the same.
        near: such questions near the edit, by kind; where the answer is not known it is empty. For report cards.
        portability: questions whose answers follow from the edit, by kind. For report cards.
    """

    number: int
    request: EditRequest
    rephrases: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()
    near: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    portability: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def rephrased(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """The rephrases as the model of `tokenizer` reads them, each with the target.

        Raises:
            EditorError: the request is in chat form, and the model has no chat template.
        """
        return self._in_form(tokenizer, [(text, self.request.target) for text in self.rephrases])

    def asked(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """The locality questions as the model reads them, each with its answer; errors as `rephrased`."""
        return self._in_form(tokenizer, self.locality)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
        """Every pair of prompt and answer that the model has to read; errors as `rephrased`."""
        edit = self._in_form(tokenizer, [(self.request.prompt, self.request.target)])
        return [*edit, *self.rephrased(tokenizer), *self.asked(tokenizer)]

    def _in_form(self, tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(in_form(tokenizer, prompt, self.request.form), answer) for prompt, answer in pairs]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Args:
        number: its place in the file, from 1.
        error: what is wrong with it.
    """

    number: int
    error: str


def read_request_rows(path: str | Path) -> Iterator[RequestRow | BadRow]:
    """The rows of a `.jsonl` file, or of a JSON file with a list.

    A row is an object with `prompt` and `target` (or `target_new`), and optionally `subject` and `relation` (texts),
    `form` (bare or chat), `rephrases` (texts), `locality` (objects with `prompt` and `answer`), and `near` and
    `portability` (such objects, each with its `kind` if it has one; in `near` the answer may be missing). Other fields
    are ignored.

    As data sets have them: a "{}" in prompt and rephrases stands for the subject; a target may be an object with `str`;
    `rephrase`, `rephrase_prompt` and `paraphrase_prompts` hold other wordings, one or a list; and prompt, target,
    subject and `relation_id` may be in an object `requested_rewrite`.

    Raises:
        DataError: the file cannot be read, or is no list.
    """
    path = Path(path)
    content = read_file(path, "check the path of the requests")
    if path.suffix == ".jsonl":
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                yield _row_of_line(number, line)
        return
    try:
        rows = parsed(content)
    except DataError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of requests; a file with one request in each line must end in .jsonl")
    for number, values in enumerate(rows, start=1):
        yield _row(number, values)


def _row_of_line(number: int, line: bytes) -> RequestRow | BadRow:
    try:
        return _row(number, parsed(line))
    except DataError as error:
        return BadRow(number, f"no JSON: {error}")


def _row(number: int, values: Any) -> RequestRow | BadRow:
    try:
        if not isinstance(values, dict):
            raise DataError(f"a request is an object with prompt and target, got {type(values).__name__}")
        request = _request(values)
        rephrases = tuple(about(text, request.subject) for text in _rephrases(values))
        locality = tuple(_question(question, "locality") for question in _list(values, "locality"))
        near, portability = (_kinds(values, name) for name in ("near", "portability"))
    except EditorError as error:
        return BadRow(number, str(error))
    return RequestRow(number, request, rephrases, locality, near, portability)


def _request(values: dict[str, Any]) -> EditRequest:
    rewrite = values.get(_REWRITE, values)
    if isinstance(rewrite, list) and len(rewrite) == 1:
        (rewrite,) = rewrite
    if not isinstance(rewrite, dict):
        raise DataError(f"{_REWRITE} must be one edit, got {shown(rewrite)}; a row makes one edit: give each its own")
    target = rewrite.get("target", rewrite.get("target_new"))
    target = target.get("str") if isinstance(target, dict) else target
    relation = rewrite.get("relation", rewrite.get("relation_id"))
    form = "bare" if values.get("form") is None else values["form"]
    return EditRequest(rewrite.get("prompt"), target, rewrite.get("subject"), relation, form)  # type: ignore[arg-type]


def _rephrases(values: dict[str, Any]) -> Iterator[str]:
    """The other wordings, each once."""
    found = [(text, "rephrases") for text in _list(values, "rephrases")]
    for name in _WORDINGS:
        given = values.get(name)
        found += [(text, name) for text in ([given] if isinstance(given, str) else _list(values, name))]
    return iter(dict.fromkeys(_text(text, name) for text, name in found))


def _list(values: dict[str, Any], name: str) -> list[Any]:
    found = values.get(name) or []
    if not isinstance(found, list):
        raise DataError(f"{name} must be a list, got {type(found).__name__}")
    return found


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{name} must hold non-empty texts, got {shown(value)}")
    require_text(value, name)
    return value


def _question(value: Any, name: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"{name} must hold objects with prompt and answer, got {type(value).__name__}")
    answer = value.get("answer")
    known = name != "near" or answer not in (None, "")
    return _text(value.get("prompt"), f"prompt of {name}"), _text(answer, f"answer of {name}") if known else ""


def _kinds(values: dict[str, Any], name: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """The questions of a list by their kinds."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for value in _list(values, name):
        question = _question(value, name)
        found[_text(value.get("kind") or _OTHER, f"kind of {name}")].append(question)
    return {kind: tuple(questions) for kind, questions in found.items()}
