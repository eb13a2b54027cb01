"""`EditRequest`: what a user asks for, in plain text."""

from __future__ import annotations

from dataclasses import dataclass

from editors.errors import EditorError


@dataclass(frozen=True)
class EditRequest:
    """One fact to change.

    Args:
        prompt: a question or cloze whose answer has to change ("What is the capital of France?").
        target: the answer the edited model must give ("Cairo").

    Raises:
        EditorError: a text is missing, blank, or not a string.
    """

    prompt: str
    target: str

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise EditorError(f"EditRequest.{name} must be a non-empty text, got {value!r}")
