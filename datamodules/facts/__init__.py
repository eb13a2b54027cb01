"""Real facts that come with installed packages: countries, cities, US states, languages, currencies, elements."""

from datamodules.facts.catalogue import world_relations
from datamodules.facts.relation import Hop, Relation
from datamodules.facts.world import split_subjects, world_facts

__all__ = ["Hop", "Relation", "split_subjects", "world_facts", "world_relations"]
