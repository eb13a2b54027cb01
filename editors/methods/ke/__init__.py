"""KE, KnowledgeEditor: a gate on the edit loss's gradient, made from the request's text (De Cao et al. 2021)."""
