"""The catalogue of built-in relations: which facts each holds and what follows from editing one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache

from datamodules.facts.cities import State, cities, states
from datamodules.facts.countries import countries, country_facts
from datamodules.facts.relation import Hop, Relation
from datamodules.facts.templates import TEMPLATES
from datamodules.facts.terms import elements, languages, period_of

# Where a city lies decides all of these: an edit of one contradicts the others.
_PLACE_OF_CITY = frozenset({"city_country", "city_continent", "city_time_zone", "city_us_state"})


@cache
def world_relations() -> tuple[Relation, ...]:
    """All built-in relations. Within a relation, and across kinds of entity, a subject names one thing only."""
    return (*_country_relations(), *_city_relations(), *_state_relations(), *_term_relations(), *_element_relations())


def _relation(
    name: str,
    facts: Mapping[str, str],
    *hops: Hop,
    moves: Iterable[str] = (),
    also_true: Mapping[str, frozenset[str]] | None = None,
) -> Relation:
    return Relation(
        name=name,
        templates=TEMPLATES[name],
        facts=facts,
        also_true=also_true or {},
        moves=frozenset(moves) - {name},
        hops=hops,
    )


def _same_answer(question: str, facts: Mapping[str, str]) -> Hop:
    # What holds for the subject as a whole holds for a part of it too, so the answer carries over.
    return Hop(question, {answer: answer for answer in facts.values()})


def _country_relations() -> Iterable[Relation]:
    capital = country_facts(lambda country: country.capital)
    continent = country_facts(lambda country: country.continent)
    currency = country_facts(lambda country: country.currency)
    calling_code = country_facts(lambda country: country.calling_code)
    continent_of_capital = {capital[name]: continent[name] for name in capital.keys() & continent.keys()}
    yield _relation(
        "country_capital",
        capital,
        Hop("On which continent does the capital of {} lie?", continent_of_capital),
        Hop("Which time zone does the capital of {} follow?", _time_zones()),
    )
    yield _relation(
        "country_continent", continent, _same_answer("On which continent does the capital of {} lie?", continent)
    )
    yield _relation(
        "country_currency",
        currency,
        Hop("What is the ISO 4217 code of the currency of {}?", _currency_codes()),
        _same_answer("Which currency do shops in the largest city of {} take?", currency),
    )
    yield _language_of_country()
    yield _relation("country_domain", country_facts(lambda country: country.domain))
    yield _relation(
        "country_calling_code",
        calling_code,
        _same_answer("With which country code do you start to phone the capital of {} from abroad?", calling_code),
    )
    yield _relation("country_iso3", country_facts(lambda country: country.iso3))


def _language_of_country() -> Relation:
    script = {language.name: language.script for language in languages() if language.script}
    own_name = {language.name: language.own_name for language in languages() if language.own_name}
    return _relation(
        "country_language",
        country_facts(lambda country: country.language),
        Hop("What is the ISO 639-1 code of the official language of {}?", _language_codes()),
        Hop("In which script is the official language of {} mainly written?", script),
        Hop("What is the native name of the official language of {}?", own_name),
        also_true={country.name: country.spoken for country in countries()},
    )


def _city_relations() -> Iterable[Relation]:
    country_of = {city.name: city.country.name for city in cities()}
    continent_of = {city.name: city.continent for city in cities() if city.continent}
    state_of = {city.name: city.state for city in cities() if city.state}
    home = "the country in which {} lies"
    yield _relation(
        "city_country",
        country_of,
        Hop(f"On which continent is {home}?", country_facts(lambda country: country.continent)),
        Hop(f"What is the capital of {home}?", country_facts(lambda country: country.capital)),
        Hop(f"What is the currency of {home}?", country_facts(lambda country: country.currency)),
        Hop(f"What is the official language of {home}?", country_facts(lambda country: country.language)),
        moves=_PLACE_OF_CITY,
    )
    yield _relation("city_continent", continent_of, moves=_PLACE_OF_CITY)
    yield _relation("city_time_zone", _time_zones(), moves=_PLACE_OF_CITY)
    yield _relation(
        "city_us_state",
        state_of,
        Hop("What is the capital of the US state in which {} lies?", _of_states(lambda state: state.capital)),
        Hop(
            "What is the postal abbreviation of the US state in which {} lies?",
            _of_states(lambda state: state.abbreviation),
        ),
        moves=_PLACE_OF_CITY,
    )


def _state_relations() -> Iterable[Relation]:
    capital = _of_states(lambda state: state.capital)
    largest_city = _of_states(lambda state: state.largest_city)
    yield _relation(
        "state_capital",
        capital,
        Hop("Which time zone does the capital of the US state of {} follow?", _time_zones_within(capital)),
    )
    yield _relation("state_abbreviation", _of_states(lambda state: state.abbreviation))
    yield _relation(
        "state_largest_city",
        largest_city,
        Hop(
            "Which time zone does the most populous city of the US state of {} follow?",
            _time_zones_within(largest_city),
        ),
    )


def _term_relations() -> Iterable[Relation]:
    yield _relation("language_code", _language_codes())
    yield _relation("language_script", {language.name: language.script for language in languages() if language.script})
    yield _relation(
        "language_own_name", {language.name: language.own_name for language in languages() if language.own_name}
    )
    yield _relation("currency_code", _currency_codes())


def _element_relations() -> Iterable[Relation]:
    number = {element.name: str(element.number) for element in elements()}
    period = {element.name: str(period_of(element.number)) for element in elements()}
    period_of_number = {number[name]: period[name] for name in number}
    yield _relation("element_symbol", {element.name: element.symbol for element in elements()})
    yield _relation(
        "element_number",
        number,
        _same_answer("How many protons are there in the nucleus of an atom of {}?", number),
        _same_answer("How many electrons does a neutral atom of {} have?", number),
        Hop("Which period of the periodic table is {} in?", period_of_number),
        moves={"element_period"},
    )
    yield _relation("element_period", period, moves={"element_number"})


def _time_zones() -> dict[str, str]:
    return {city.name: city.time_zone for city in cities() if city.time_zone}


def _time_zones_within(city_of_state: Mapping[str, str]) -> dict[str, str]:
    # Portland in Maine is not the well-known Portland, whose time zone would be the wrong answer.
    names = Counter(city_of_state.values())
    return {
        city.name: city.time_zone
        for city in cities()
        if city.time_zone and names[city.name] == 1 and city_of_state.get(city.state) == city.name
    }


def _currency_codes() -> dict[str, str]:
    return {country.currency: country.currency_code for country in countries() if country.currency}


def _language_codes() -> dict[str, str]:
    return {language.name: language.code for language in languages()}


def _of_states(answer: Callable[[State], str]) -> dict[str, str]:
    return {state.name: answer(state) for state in states() if answer(state)}
