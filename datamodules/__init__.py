"""Data sets as edit records, and records as batches of episodes."""

from datamodules.base import EditDataModule, RecordSource
from datamodules.records import EditRecord, Probe
from datamodules.sources import CounterFact, KnowEdit, MQuAKE, QAEdit, Sample, WikiBigEdit, WorldFacts, ZsRE

__all__ = [
    "CounterFact",
    "EditDataModule",
    "EditRecord",
    "KnowEdit",
    "MQuAKE",
    "Probe",
    "QAEdit",
    "RecordSource",
    "Sample",
    "WikiBigEdit",
    "WorldFacts",
    "ZsRE",
]
