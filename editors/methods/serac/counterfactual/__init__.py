"""Counterfactual models: what answers queries in scope. One file for each kind, behind `interface.Counterfactual`."""
