"""MEND: a low-rank transform of the edit loss's gradient (Mitchell et al. 2022)."""

from editors.making.registry import Method

METHOD = Method(
    name="mend",
    network="editors.methods.mend.network:MENDNetwork",
    config="editors.methods.mend.network:MENDConfig",
    module="editors.methods.mend.module:MEND",
    paper="E. Mitchell, C. Lin, A. Bosselut, C. Finn, C. D. Manning: *Fast Model Editing at Scale*, ICLR 2022, "
    "https://arxiv.org/abs/2110.11309",
)
