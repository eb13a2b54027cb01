"""Metrics of edits, and the one evaluator that computes them; no Lightning."""
