"""Texts near an edit, made of other edits: the same question about another subject, another question about this one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from editors.texts.requests import EditRequest

_SUBJECT = "{}"


def template_of(prompt: str, subject: str | None) -> str | None:
    """The prompt with its subject taken out; `None` where it names none, or the subject is not in it.

    >>> template_of("What is the capital of France?", "France")
    'What is the capital of {}?'
    """
    if not subject or subject not in prompt:
        return None
    return prompt.replace(subject, _SUBJECT)


def filled(template: str, subject: str) -> str:
    """A template about a subject.

    >>> filled("What is the capital of {}?", "Chad")
    'What is the capital of Chad?'
    """
    return template.replace(_SUBJECT, subject)


def same_question(request: EditRequest, subjects: Iterable[str]) -> list[str]:
    """The question of a request about other subjects; none where it names no subject.

    Args:
        request: the edit.
        subjects: other subjects; its own, and any that holds it or is held by it, is left out: that may be the same
            thing by another name.

    >>> same_question(EditRequest("Who rules France?", "Ann", subject="France"), ["Chad", "New France", "France"])
    ['Who rules Chad?']
    """
    template = template_of(request.prompt, request.subject)
    if template is None or request.subject is None:
        return []
    return [filled(template, other) for other in subjects if not alike(other, request.subject)]


def alike(first: str, second: str) -> bool:
    """Whether one name is in the other, whatever the case: they may mean the same."""
    one, two = first.casefold(), second.casefold()
    return one in two or two in one


def other_questions(request: EditRequest, templates: Sequence[str]) -> list[str]:
    """Other questions about the subject of a request; none where it names no subject.

    Args:
        request: the edit.
        templates: of questions; its own is left out.

    >>> other_questions(EditRequest("Who rules France?", "Ann", subject="France"), ["Who rules {}?", "Where is {}?"])
    ['Where is France?']
    """
    own = template_of(request.prompt, request.subject)
    if own is None or request.subject is None:
        return []
    return [filled(template, request.subject) for template in templates if template != own]
