"""MEND: a low-rank transform of the edit loss's gradient (Mitchell et al. 2022)."""
