"""Which texts share a pass: bucketing by length, leading tokens in common."""
