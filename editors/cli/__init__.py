"""The commands of `python -m editors`: one module for each, with `add` (its options) and `run` (what it does)."""
