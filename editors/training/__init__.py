"""Training with Lightning: the base module of learned editors, sharding, compilation."""
