"""SERAC: an explicit memory of edits, a scope classifier and a counterfactual model (Mitchell et al. 2022b)."""

from editors.making.registry import Method

METHOD = Method(
    name="serac",
    network="editors.methods.serac.network:SERACNetwork",
    config="editors.methods.serac.network:SERACConfig",
    module="editors.methods.serac.module:SERAC",
    merges=False,
    repeats=False,  # a memory is written once: writing the same again would change nothing
    saved_edits={"hyperedit-memory-1": "editors.methods.serac.network:read_edit"},
    paper="E. Mitchell, C. Lin, A. Bosselut, C. D. Manning, C. Finn: *Memory-Based Model Editing at Scale*, ICML "
    "2022, https://arxiv.org/abs/2206.06520",
)
