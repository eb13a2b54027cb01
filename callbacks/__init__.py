"""Side effects of a run: tables, plots, results file, export, memory, watchdog.

Each is imported when it is first named: plots need matplotlib, and some callbacks know a method.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.examples import ExampleTable
    from callbacks.export import ExportArtifact
    from callbacks.margins import AnnealMargins
    from callbacks.memory import MemoryReport
    from callbacks.plots import ResultPlot
    from callbacks.preemption import SaveOnSigterm
    from callbacks.progress import RunProgressBar
    from callbacks.report import WriteReport
    from callbacks.results import ResultsFile
    from callbacks.scope_plot import ScopePlot
    from callbacks.watchdog import Watchdog

_HOMES = {
    "AnnealMargins": "margins",
    "ExampleTable": "examples",
    "ExportArtifact": "export",
    "MemoryReport": "memory",
    "ResultPlot": "plots",
    "ResultsFile": "results",
    "RunProgressBar": "progress",
    "SaveOnSigterm": "preemption",
    "ScopePlot": "scope_plot",
    "Watchdog": "watchdog",
    "WriteReport": "report",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - they are named once


def __getattr__(name: str) -> Any:
    """Import a callback when it is first named."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"callbacks.{_HOMES[name]}"), name)
