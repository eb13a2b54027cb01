"""How each relation is phrased: questions (they end in "?") and cloze prompts (the answer comes next).

A template never starts with the subject where the subject may be a common noun or carry an article, and never holds
a word that contains a subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "country_capital": (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "What is the name of the capital city of {}?",
            "The capital of {} is",
            "The capital city of {} is called",
            "The city that serves as the capital of {} is",
        ),
        "country_continent": (
            "On which continent is {}?",
            "Which continent does {} belong to?",
            "Which continent is {} part of?",
            "The continent on which {} lies is",
            "On a map of the world, {} is found on the continent of",
            "Geographically, {} is part of the continent of",
        ),
        "country_currency": (
            "What is the currency of {}?",
            "Which currency is used in {}?",
            "In which currency do people pay in {}?",
            "The currency of {} is the",
            "The legal tender of {} is the",
            "People who live in {} are paid in a currency called the",
        ),
        "country_language": (
            "What is the official language of {}?",
            "Which language is official in {}?",
            "In which language are the laws of {} written?",
            "The official language of {} is",
            "The language used by the government of {} is",
            "The state language of {} is called",
        ),
        "country_domain": (
            "What is the internet country code domain of {}?",
            "Which top-level domain do websites from {} use?",
            "Which internet domain is assigned to {}?",
            "The country code top-level domain of {} is",
            "Web addresses registered in {} end in",
            "The internet domain of {} is",
        ),
        "country_calling_code": (
            "What is the international calling code of {}?",
            "Which country code do you dial to phone someone in {}?",
            "What is the telephone country code of {}?",
            "The international dialling code of {} is",
            "Phone numbers from {} start with the country code",
            "To call {} from abroad, first dial",
        ),
        "country_iso3": (
            "What is the three-letter ISO country code of {}?",
            "Which ISO 3166 alpha-3 code stands for {}?",
            "How is {} abbreviated in three letters under ISO 3166?",
            "The three-letter ISO country code of {} is",
            "In the ISO 3166 alpha-3 list, the code for {} is",
            "The alpha-3 country code assigned to {} is",
        ),
        "city_country": (
            "In which country is {}?",
            "Which country does the city of {} belong to?",
            "What country would you visit to see the city of {}?",
            "The city of {} is located in",
            "{} is a city in",
            "The country in which {} lies is",
        ),
        "city_continent": (
            "On which continent is the city of {}?",
            "Which continent is {} on?",
            "To which continent must you travel to visit {}?",
            "The city of {} is on the continent of",
            "The continent on which {} lies is",
            "{} is a city on the continent of",
        ),
        "city_time_zone": (
            "Which time zone is {} in?",
            "What is the name of the standard time zone of {}?",
            "By which standard time do people in {} set their clocks?",
            "The standard time zone of {} is called",
            "Clocks in {} are set to",
            "The time zone observed in {} is",
        ),
        "city_us_state": (
            "In which US state is {}?",
            "Which US state does the city of {} belong to?",
            "Which state of the United States is home to {}?",
            "The city of {} is in the US state of",
            "{} is a city in the state of",
            "The US state in which {} lies is",
        ),
        "state_capital": (
            "What is the capital of the US state of {}?",
            "Which city is the capital of the state of {}?",
            "In which city does the state government of {} sit?",
            "The capital of the US state of {} is",
            "The state capital of {} is",
            "The city that serves as the capital of the state of {} is",
        ),
        "state_abbreviation": (
            "What is the postal abbreviation of the US state of {}?",
            "Which two letters stand for the state of {} in a US address?",
            "How does the US Postal Service abbreviate {}?",
            "The two-letter postal abbreviation of the state of {} is",
            "In US addresses, the state of {} is written as",
            "The US Postal Service abbreviates {} as",
        ),
        "state_largest_city": (
            "What is the most populous city of the US state of {}?",
            "Which city of the state of {} has the most inhabitants?",
            "What is the largest city by population in the state of {}?",
            "The most populous city of the US state of {} is",
            "By population, the largest city of the state of {} is",
            "The biggest city in the state of {} is",
        ),
        "element_symbol": (
            "What is the chemical symbol of {}?",
            "Which symbol stands for {} on a periodic chart?",
            "How do chemists abbreviate {}?",
            "The chemical symbol of {} is",
            "In chemical formulas, {} is written as",
            "The symbol for the element {} is",
        ),
        "element_number": (
            "What is the atomic number of {}?",
            "Which atomic number does the element {} have?",
            "Under what number is {} listed among the chemical elements?",
            "The atomic number of {} is",
            "The element {} has the atomic number",
            "Among the chemical elements, {} is number",
        ),
        "element_period": (
            "Which period of the periodic table is {} in?",
            "In what row of the periodic table does {} appear?",
            "To which period does the element {} belong?",
            "In the periodic table, {} is found in period",
            "The element {} belongs to period",
            "The row of the periodic table that holds {} is number",
        ),
        "language_code": (
            "What is the two-letter ISO 639-1 code of the {} language?",
            "Which two-letter language code stands for {}?",
            "How is the {} language abbreviated under ISO 639-1?",
            "The ISO 639-1 code of {} is",
            "The two-letter language code of {} is",
            "Software marks a text written in {} with the language code",
        ),
        "language_script": (
            "In which script is the {} language mainly written?",
            "Which writing system does {} use?",
            "What is the name of the script used for writing {}?",
            "The {} language is mainly written in a script called",
            "The writing system of the {} language is called",
            "Books in {} are printed in a script called",
        ),
        "language_own_name": (
            "What do speakers of the {} language call it themselves?",
            "What is the native name of the {} language?",
            "What is the word for the {} language in that language itself?",
            "In the language itself, {} is called",
            "The native name of the {} language is",
            "Native speakers call the {} language",
        ),
        "currency_code": (
            "What is the ISO 4217 code of the {}?",
            "Which three-letter code do banks use for the {}?",
            "How is the {} abbreviated on currency markets?",
            "The ISO 4217 currency code of the {} is",
            "On exchange boards, the {} is listed as",
            "The three-letter code of the {} is",
        ),
    }
)
