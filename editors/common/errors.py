"""The errors hyperedit raises on purpose. Each names the thing, the value, what was allowed, and the remedy."""


class EditorError(ValueError):
    """Base of every error a user can cause and mend. A `ValueError`, so that generic handlers keep working."""


class UsageError(EditorError):
    """The command line or a configuration asks for what does not exist, or leaves out what is needed."""


class SiteError(EditorError):
    """An edit site was asked for that the base model does not have, or that is not a linear layer."""


class DataError(EditorError):
    """A data file holds rows that cannot be used, or two splits leak into each other."""


class ArtifactError(EditorError):
    """An exported editor or edit is damaged, or does not fit the base model it is applied to."""


class BaseModelError(EditorError):
    """A base model cannot be found, is of an unsupported kind, or was changed while it had to stay frozen."""


def one_line(error: BaseException) -> str:
    r"""What an error says, on one line: those of libraries have paragraphs.

    >>> one_line(ValueError("no file:\n  a.txt"))
    'no file: a.txt'
    """
    return " ".join(str(error).split()) or type(error).__name__
