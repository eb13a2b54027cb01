"""Making and scoring edits where nothing is trained: files of requests."""
