"""Forms of a question: bare as it stands, or as the user's turn in the model's chat template.

A chat model reads the same question in its template as quite another text, so an edit holds in the form it was made in.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from editors.common.errors import EditorError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["bare", "chat"]
FORMS: tuple[Form, ...] = get_args(Form)

# Stands for a question. Lower-case letters only: no tokenizer changes them, and no template has them.
_SENTINEL = "hypereditquestion"


class _Frame(NamedTuple):
    """What a chat template writes before and after a question."""

    before: str
    after: str


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer came with a chat template."""
    template: Any = getattr(tokenizer, "chat_template", None)
    return "default" in template if isinstance(template, dict) else bool(template)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The question as the user's one turn in the model's chat template, up to where the answer starts.

    The text is to be encoded with the tokenizer's own special tokens: the beginning-of-text token that a template
    writes is left out where the tokenizer adds one by itself. A system message is the template's own, if it has one.

    Args:
        tokenizer: the model's.
        question: in plain text.

    Raises:
        EditorError: the tokenizer has no chat template, or the template cannot render one user's turn.
    """
    if not has_chat_template(tokenizer):
        raise EditorError(f"the tokenizer of {_name(tokenizer)} has no chat template; use form bare")
    turn = [{"role": "user", "content": question}]
    try:
        text = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    except (TemplateError, ValueError, TypeError, ImportError) as error:
        raise EditorError(
            f"the chat template of {_name(tokenizer)} refuses the question {question[:60]!r}: {error}; use form bare"
        ) from error
    if question.strip() not in text:
        raise EditorError(
            f"the chat template of {_name(tokenizer)} leaves out the question {question[:60]!r}; use form bare"
        )
    begin = tokenizer.bos_token
    return text.removeprefix(begin) if isinstance(begin, str) and _adds(tokenizer, begin) else text


def in_form(tokenizer: PreTrainedTokenizerBase, question: str, form: Form) -> str:
    """What the model reads for `question`.

    Args:
        tokenizer: the model's.
        question: in plain text.
        form: bare, or in the chat template.

    Raises:
        EditorError: as `chat_prompt`.
    """
    return chat_prompt(tokenizer, question) if form == "chat" else question


def bare_question(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The question in a text that `chat_prompt` made; any other text as it is.

    The text may also begin with the beginning-of-text token, as a rendered template does, or be what the tokenizer
    decodes without special tokens; and white space around it may be missing.

    Args:
        tokenizer: the model's.
        text: what the model reads up to its answer.
    """
    for before, after in _frames(tokenizer):
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            return text[len(before) : len(text) - len(after)]
    return text


def form_of(tokenizer: PreTrainedTokenizerBase, text: str) -> Form:
    """The form of a text: chat if `bare_question` finds a question in a chat template."""
    return "bare" if bare_question(tokenizer, text) == text else "chat"


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _adds(tokenizer: PreTrainedTokenizerBase, begin: str) -> bool:
    """Whether the tokenizer puts the token `begin` before any text by itself."""
    first: list[int] = tokenizer("a")["input_ids"][:1]
    return first == [tokenizer.convert_tokens_to_ids(begin)]


# Made once for each tokenizer, template and day (a template may write the date).
_known: WeakKeyDictionary[Any, tuple[object, tuple[_Frame, ...]]] = WeakKeyDictionary()


def _frames(tokenizer: PreTrainedTokenizerBase) -> tuple[_Frame, ...]:
    """What stands around a question in the chat template: as rendered, and as decoded without special tokens."""
    if not has_chat_template(tokenizer):
        return ()
    state = (str(tokenizer.chat_template), date.today())
    if tokenizer not in _known or _known[tokenizer][0] != state:
        _known[tokenizer] = state, _made_frames(tokenizer)
    return _known[tokenizer][1]


def _made_frames(tokenizer: PreTrainedTokenizerBase) -> tuple[_Frame, ...]:
    try:
        rendered = chat_prompt(tokenizer, _SENTINEL)
    except EditorError:  # then it has made no text
        return ()
    decoded = str(tokenizer.decode(tokenizer(rendered)["input_ids"], skip_special_tokens=True))
    # As users render it, who leave the beginning-of-text token in.
    begun = f"{tokenizer.bos_token or ''}{rendered}"
    texts = (rendered, rendered.strip(), decoded, decoded.strip(), begun, begun.strip())
    parts = [text.split(_SENTINEL) for text in texts]
    # A frame of nothing but white space cannot be told from a bare text.
    frames = [_Frame(*part) for part in parts if len(part) == 2 and "".join(part).strip()]
    return tuple(dict.fromkeys(frames))
