"""The YAML files of the command line, as package data."""
