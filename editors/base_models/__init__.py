"""Base models: loading them, their edit sites, quantised weights, what encoder-decoder models do otherwise."""
