"""The registered methods: every folder of `editors/methods` declares one; other packages do so by entry point.

A folder's `__init__.py` declares its `METHOD`. A package elsewhere names such an object in its `pyproject.toml`:

    [project.entry-points."hyperedit.methods"]
    my_method = "my_package.my_method:METHOD"
"""

from __future__ import annotations

import logging
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from editors.common.errors import EditorError
from editors.texts.requests import EditRequest

if TYPE_CHECKING:
    from editors.base_models.families.family import Family

# The folder of this project's methods. By name, as those of other packages are: what methods share knows none of them.
_FOLDER = "editors.methods"
ENTRY_POINTS = "hyperedit.methods"
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class RegistrationError(EditorError):
    """A method is declared wrongly, or under a name that is taken."""


@dataclass(frozen=True)
class Method:
    """What a method says about itself; its parts are imported when used, so that applying needs no training library.

    Args:
        name: lower case; as in configurations and artifacts.
        network: "module:class" of the `EditMethod`.
        config: "module:class" of the dataclass that it is built from.
        module: "module:class" of its Lightning module; `None` for a method that learns nothing.
        needs_subject: whether a request must name its subject.
        merges: whether its edits are weight updates, which can be merged and written as adapters.
        repeats: whether an edit that did not take is made again from what the edited model says (`attempts`).
        encoder_decoder: whether it edits encoder-decoder models too.
        saved_edits: for each format of a saved edit that only this method's editor can read, "module:function" that
            takes the file, the editor's `EditMethod` and the base model's tokenizer.
        paper: what to cite: authors, title, venue, address.
    """

    name: str
    network: str
    config: str
    module: str | None = None
    needs_subject: bool = False
    merges: bool = True
    repeats: bool = True
    encoder_decoder: bool = True
    saved_edits: dict[str, str] = field(default_factory=dict)
    paper: str | None = None

    @property
    def needs_training(self) -> bool:
        """Whether it makes edits only once it was trained."""
        return self.module is not None

    def load_network(self) -> tuple[Any, Any]:
        """The `EditMethod` class and its configuration's class (torch and transformers only)."""
        return self._load(self.network), self._load(self.config)

    def load_module(self) -> Any:
        """The Lightning module class.

        Raises:
            RegistrationError: it has none, or it cannot be found.
        """
        if self.module is None:
            raise RegistrationError(f"method {self.name!r} learns nothing and has no Lightning module")
        return self._load(self.module)

    def load_reader(self, saved_format: str) -> Any:
        """The function that reads saved edits of a format; see `saved_edits`."""
        return self._load(self.saved_edits[saved_format])

    def require_answerable(self, requests: Iterable[EditRequest]) -> None:
        """Check that requests say what the method needs.

        Raises:
            EditorError: one names no subject, and the method needs it.
        """
        for request in requests:
            if self.needs_subject and request.subject is None:
                raise EditorError(
                    f"method {self.name!r} edits at the subject's tokens, and request {request.prompt[:60]!r} names "
                    "no subject: give EditRequest(subject=…), --subject, or the field subject of the file"
                )

    def require_family(self, family: type[Family]) -> None:
        """Check that the method edits this family of base models.

        Raises:
            EditorError: it does not.
        """
        if family.has_encoder and not self.encoder_decoder:
            raise EditorError(f"method {self.name!r} edits decoder-only models, not encoder-decoder ones (T5, BART)")

    def check(self) -> None:
        """Import every part that is named.

        Raises:
            RegistrationError: a part cannot be found.
        """
        for part in (self.network, self.config, self.module, *self.saved_edits.values()):
            if part is not None:
                self._load(part)

    def _load(self, place: str) -> Any:
        module, _, name = place.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise RegistrationError(
                f"method {self.name!r} declares {place!r}, which cannot be found: {error}. Write it as 'module:name'"
            ) from error


def registered_methods() -> dict[str, Method]:
    """All methods by name, those of this package first. A faulty one of another package is left out, and logged.

    Raises:
        RegistrationError: a folder of this package declares no method, or one whose name is taken.
    """
    return _registry()[0]


def registered_method(name: str) -> Method:
    """The method of this name.

    Raises:
        EditorError: there is none.
        RegistrationError: another package's entry point has this name, and its declaration is faulty.

    >>> registered_method("mend").needs_training
    True
    >>> registered_method("mnd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    editors.common.errors.EditorError: there is no editor 'mnd'; registered are: ...
    """
    methods, faults = _registry()
    if name in methods:
        return methods[name]
    if name in faults:
        raise RegistrationError(faults[name])
    raise EditorError(f"there is no editor {name!r}; registered are: {', '.join(sorted(methods))}")


def forget_methods() -> None:
    """Look for methods anew the next time that one is asked for: packages have been installed or removed."""
    _registry.cache_clear()


@cache
def _registry() -> tuple[dict[str, Method], dict[str, str]]:
    """The methods by name; and by the names of entry points what is wrong with other packages' declarations."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(import_module(_FOLDER).__path__):
        if module.ispkg:
            place = f"{_FOLDER}.{module.name}"
            _accept(found, f"{place}.METHOD", getattr(import_module(place), "METHOD", None))
    faults: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        place = f"entry point {point.name!r} of {ENTRY_POINTS} ({point.value})"
        try:
            _accept(found, place, point.load())
        except (ImportError, AttributeError) as error:
            faults[point.name] = f"{place} cannot be imported: {error}. Mend or uninstall that package"
        except RegistrationError as error:
            faults[point.name] = str(error)
    for fault in faults.values():
        _LOG.warning("A method is left out: %s", fault)
    return found, faults


def _accept(found: dict[str, Method], place: str, method: Any) -> None:
    if not isinstance(method, Method):
        raise RegistrationError(f"{place} is a {type(method).__name__}; it must be a `Method`")
    if not _NAME.fullmatch(method.name):
        raise RegistrationError(
            f"{place} declares method name {method.name!r}: allowed are lower-case letters, digits and _, a letter "
            "first"
        )
    if method.name in found:
        raise RegistrationError(f"{place} declares method {method.name!r}, and there is one already; rename it")
    found[method.name] = method
