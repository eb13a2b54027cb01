"""`FrozenLM` and its passes: the frozen prefix, factor capture, edited passes, generation, what is kept of them."""
