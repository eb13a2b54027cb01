"""How names are spelt in the built-in facts."""

from __future__ import annotations

import re
import unicodedata

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z' .-]*")


def to_ascii(name: str) -> str:
    """`name` without accents and with straight apostrophes.

    The sources differ in whether they write accents; one spelling lets their facts be joined.

    >>> to_ascii("Bogotá")
    'Bogota'
    """
    decomposed = unicodedata.normalize("NFKD", name.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def is_plain(name: str) -> bool:
    """Whether `name` is made of unaccented Latin letters, spaces, apostrophes, full stops and hyphens."""
    return _PLAIN_NAME.fullmatch(name) is not None
