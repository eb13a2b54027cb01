"""Languages (from Babel's CLDR data) and chemical elements (from `periodictable`)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import periodictable
from babel import Locale, UnknownLocaleError
from babel.core import get_global

from datamodules.facts.spelling import to_ascii

# Names that differ from the one in common use.
_LANGUAGE_NAMES = {"bn": "Bengali", "dv": "Dhivehi"}
_SCRIPT_NAMES = {"Beng": "Bengali", "Mymr": "Burmese"}
# A locale translated this far is one of a language people will have heard of.
_FEWEST_TRANSLATED_NAMES = 400
# Norwegian stands for its two written forms; Interlingua is little known.
_LANGUAGES_LEFT_OUT = frozenset({"ia", "nb", "nn"})
# Written in several scripts, or in a script of its own name only (Japanese, Korean).
_SCRIPT_CONTESTED = frozenset(
    {"az", "bs", "ha", "ja", "kk", "ko", "ks", "ku", "mn", "ms", "pa", "sd", "sr", "su", "tk", "uz", "yi", "zh"}
)
# CLDR has a shortened or qualified own name, such as "Indonesia" for Bahasa Indonesia.
_OWN_NAME_CONTESTED = frozenset({"id", "jv", "ku", "ms"})
_LAST_NUMBER_OF_PERIOD = (2, 10, 18, 36, 54, 86, 118)


@dataclass(frozen=True)
class Language:
    """A language and its facts; a fact that is disputed or cannot serve as an answer is empty.

    Args:
        code: ISO 639-1 code.
        name: English name.
        script: the script it is mainly written in.
        own_name: its name in the language itself, where that is in Latin script and not the English name.
    """

    code: str
    name: str
    script: str
    own_name: str


@dataclass(frozen=True)
class Element:
    """A chemical element.

    Args:
        name: English name, in lower case.
        symbol: chemical symbol.
        number: atomic number.
    """

    name: str
    symbol: str
    number: int


@cache
def language_names() -> dict[str, str]:
    """ISO 639-1 code -> English name, for every language CLDR names."""
    names = Locale("en").languages.items()
    return {code: _LANGUAGE_NAMES.get(code, to_ascii(name)) for code, name in names if len(code) == 2}


@cache
def languages() -> tuple[Language, ...]:
    """The well-known languages, in the order of their codes."""
    read = (_read_language(code, name) for code, name in sorted(language_names().items()))
    return tuple(language for language in read if language is not None)


@cache
def elements() -> tuple[Element, ...]:
    """The 118 chemical elements, in the order of their numbers."""
    # The table starts with the neutron, which has number 0.
    return tuple(Element(item.name, item.symbol, item.number) for item in periodictable.elements if item.number > 0)


def period_of(number: int) -> int:
    """The period of the periodic table the element with this atomic number stands in."""
    return bisect_left(_LAST_NUMBER_OF_PERIOD, number) + 1


def _read_language(code: str, name: str) -> Language | None:
    try:
        locale = Locale(code)
    except UnknownLocaleError:
        return None
    if len(locale.languages) < _FEWEST_TRANSLATED_NAMES or code in _LANGUAGES_LEFT_OUT:
        return None
    script = get_global("likely_subtags")[code].split("_")[1]
    script_name = _SCRIPT_NAMES.get(script, Locale("en").scripts[script])
    return Language(
        code=code,
        name=name,
        # "Thai is written in the Thai script" gives its answer away.
        script="" if code in _SCRIPT_CONTESTED or script_name == name else script_name,
        own_name=_own_name(locale, name) if script == "Latn" else "",
    )


def _own_name(locale: Locale, name: str) -> str:
    own_name = locale.get_language_name() or ""
    is_words = own_name.replace(" ", "").isalpha()
    return own_name if is_words and own_name != name and locale.language not in _OWN_NAME_CONTESTED else ""
