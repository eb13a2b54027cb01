"""The two families of language models: what is different about them, and nothing elsewhere."""
