"""The editing methods, one folder each. A folder registers itself (`METHOD`); none knows of another."""
