"""Edits: what is applied to a base model, merged, saved and composed."""
