"""Trained editors as files that need no training library."""
