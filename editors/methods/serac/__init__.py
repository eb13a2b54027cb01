"""SERAC: an explicit memory of edits, a scope classifier and a counterfactual model (Mitchell et al. 2022b)."""
