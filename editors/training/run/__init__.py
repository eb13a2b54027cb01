"""A run's own affairs: its folder, its checkpoints' files, the facts behind its numbers, readable errors."""
