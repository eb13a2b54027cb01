"""Side effects of a run: tables, plots, results file, export, memory, watchdog."""

from callbacks.examples import ExampleTable
from callbacks.export import ExportArtifact
from callbacks.margins import AnnealMargins
from callbacks.memory import MemoryReport
from callbacks.plots import ResultPlot
from callbacks.preemption import SaveOnSigterm
from callbacks.results import ResultsFile
from callbacks.scope_plot import ScopePlot
from callbacks.watchdog import Watchdog

__all__ = [
    "AnnealMargins",
    "ExampleTable",
    "ExportArtifact",
    "MemoryReport",
    "ResultPlot",
    "ResultsFile",
    "SaveOnSigterm",
    "ScopePlot",
    "Watchdog",
]
