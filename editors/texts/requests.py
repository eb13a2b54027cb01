"""`EditRequest`: what a user asks for, in plain text."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from editors.common.errors import EditorError
from editors.texts.forms import FORMS, Form

# A tokenizer may take time that grows with the square of the length. Questions have some hundred characters.
LONGEST_TEXT = 100_000
_SUBJECT = "{}"


def require_unicode(text: str, name: str) -> None:
    """Check that a text can be tokenised and written to a file.

    Args:
        text: the text.
        name: what it is, for the message.

    Raises:
        EditorError: it holds half a surrogate pair: bytes of a shell that are no UTF-8, or a lone escape in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EditorError(f"{name} {text[:60]!r} is no text in Unicode: {error.reason}") from error


def require_text(text: str, name: str) -> None:
    """Check that a text can be read: as `require_unicode`, and that it is not too long for any tokenizer.

    Raises:
        EditorError: it cannot.
    """
    if len(text) > LONGEST_TEXT:
        raise EditorError(f"{name} {text[:60]!r} has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
    require_unicode(text, name)


def about(text: str, subject: str | None) -> str:
    """A text about a subject: with it in place of "{}", as ROME writes prompts, unless the text names it already.

    >>> about("{} has its capital in", "Chad"), about("What does {} mean?", None)
    ('Chad has its capital in', 'What does {} mean?')
    """
    return text.replace(_SUBJECT, subject) if subject and subject not in text else text


@dataclass(frozen=True)
class EditRequest:
    """One fact to change.

    Args:
        prompt: a question or cloze whose answer has to change ("What is the capital of France?"). "{}" in it stands for
            the subject, as in ROME's requests, unless it names that already.
        target: the answer the edited model must give ("Cairo").
        subject: what the fact is about ("France"). Methods that edit at the subject's tokens need it; together with
            `relation` it tells that two differently worded requests are about the same fact.
        relation: what is said of the subject ("capital").
        form: what the model reads: the "bare" prompt, or the prompt as the user's turn in its "chat" template. An edit
            is for the form that it is made in.

    Raises:
        EditorError: a text is missing, blank, or not a string, or there is no such form.
    """

    prompt: str
    target: str
    subject: str | None = None
    relation: str | None = None
    form: Form = "bare"

    def __post_init__(self) -> None:
        given = (name for name in ("subject", "relation") if getattr(self, name) is not None)
        for name in ("prompt", "target", *given):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise EditorError(f"EditRequest.{name} must be a non-empty text, got {value!r:.80}")
            require_text(value, f"EditRequest.{name}")
        if self.form not in FORMS:
            raise EditorError(f"EditRequest.form must be one of {', '.join(FORMS)}, got {self.form!r}")
        object.__setattr__(self, "prompt", about(self.prompt, self.subject))

    def texts(self) -> dict[str, str]:
        """The fields that are given, by name, the form if it is not bare; `EditRequest(**texts)` is this request.

        >>> EditRequest("What is the capital of France?", "Cairo").texts()
        {'prompt': 'What is the capital of France?', 'target': 'Cairo'}
        """
        given = {name: text for name, text in asdict(self).items() if text is not None}
        if self.form == "bare":  # as saved edits and manifests say that were written before there were forms
            del given["form"]
        return given
