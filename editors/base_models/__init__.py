"""Base models: loading them, their edit sites, quantised weights, their two families."""
