"""The two families of language models: how each is loaded, called and encoded, and where its blocks are."""
