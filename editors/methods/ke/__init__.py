"""KE, KnowledgeEditor: a gate on the edit loss's gradient, made from the request's text (De Cao et al. 2021)."""

from editors.making.registry import Method

METHOD = Method(
    name="ke",
    network="editors.methods.ke.network:KENetwork",
    config="editors.methods.ke.network:KEShape",
    module="editors.methods.ke.module:KE",
    paper="N. De Cao, W. Aziz, I. Titov: *Editing Factual Knowledge in Language Models*, EMNLP 2021, "
    "https://arxiv.org/abs/2104.08164",
)
