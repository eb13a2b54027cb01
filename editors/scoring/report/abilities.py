"""General ability before and after an edit, in tasks of lm-evaluation-harness, which is an extra."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from editors.common.errors import EditorError, UsageError, one_line
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM

PACKAGE = "lm_eval"
# Texts of one pass: the harness keeps all their logits, and an answer's likelihood needs few positions of them.
_TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Ability:
    """One metric of one task.

    Args:
        task: its name, or that of a group of tasks.
        metric: its name, with the filter of the answers where the task has one.
        before: of the base model.
        after: of the edited model.
        n: how many examples.
        error: standard error of `after` over the examples, where the metric has one.
    """

    task: str
    metric: str
    before: float
    after: float
    n: int
    error: float | None = None


class Tasks:
    """Tasks of lm-evaluation-harness, loaded with their data.

    Args:
        names: of tasks, groups of tasks, or tags.
        folder: with task files; the package's own are looked up only if one of the names is not there.
        limit: examples of each task, at most.

    Raises:
        UsageError: the package is not installed, there is no such folder, or no task of a name.
        EditorError: a task's file or data cannot be read.
    """

    def __init__(self, names: Sequence[str], folder: str | Path | None = None, limit: int | None = None) -> None:
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"--task-folder {folder}: there is no such folder; name the one that holds the task files")
        if importlib.util.find_spec(PACKAGE) is None:
            raise UsageError("--tasks needs lm-evaluation-harness: pip install 'hyperedit[abilities]'")
        self.names, self.limit = tuple(names), limit
        with _quiet():
            self._manager = _manager(self.names, folder)
            self._loaded = _loaded(self._manager, self.names)

    @property
    def protocol(self) -> str:
        """How abilities are measured, in words."""
        count = "all examples" if self.limit is None else f"the first {self.limit} examples of each"
        return (
            f"tasks of lm-evaluation-harness {version(PACKAGE)}, {count}, prompts as the tasks have them, without chat "
            "template; on the base model, and with the first edit"
        )

    def measure(self, lm: FrozenLM, edit: Edit) -> tuple[Ability, ...]:
        """Run the tasks on the base model and on the edited one.

        Args:
            lm: the base model.
            edit: of one episode.

        Raises:
            EditorError: the edit depends on the whole prompt, or the harness refuses a task for this model.
        """
        if not edit.shares_passes:
            raise EditorError(
                f"--tasks cannot measure a {type(edit).__name__}: it decides by the whole prompt, and "
                "lm-evaluation-harness runs prompt, answer and padding as one text. Leave out --tasks"
            )
        before = self._run(lm, nullcontext())
        after = self._run(lm, edit.applied(lm.model))
        return tuple(
            Ability(task, _title(key), value, after[task][key], int(values["sample_len"]), _error(after[task], key))
            for task, values in before.items()
            for key, value in values.items()
            if "," in key and "_stderr," not in key and isinstance(value, int | float)
        )

    def _run(self, lm: FrozenLM, applied: AbstractContextManager[None]) -> Mapping[str, Mapping[str, Any]]:
        """What the harness finds, by task, while something is applied to the model."""
        from lm_eval import simple_evaluate  # noqa: PLC0415 - an extra, and slow to import
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        with _quiet():
            # A copy: it is given a padding token where it has none.
            model = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=_TEXTS_AT_ONCE)
            try:
                with applied:
                    found = simple_evaluate(
                        model,
                        tasks=list(self._loaded),
                        task_manager=self._manager,
                        limit=self.limit,
                        log_samples=False,
                    )
            except (NotImplementedError, ValueError) as error:
                raise EditorError(f"--tasks {','.join(self.names)} cannot be run: {one_line(error)}") from error
        results: Mapping[str, Mapping[str, Any]] = found["results"]
        return results


def _manager(names: Sequence[str], folder: str | Path | None) -> Any:
    """The index of tasks; that of the package's own takes most of a minute to read."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - an extra

    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=None if folder is None else str(folder))
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            where = "lm-evaluation-harness has no such task" + (
                "" if folder is None else f", and {folder} no file of it"
            )
            hint = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
            raise UsageError(f"--tasks {name}: {where}{hint}")
    return manager


def _loaded(manager: Any, names: Sequence[str]) -> list[Any]:
    """Tasks and groups with their data; a group's tasks are in it."""
    loaded: dict[str, Any] = {}
    inside: set[str] = set()
    for name in dict.fromkeys(names):
        try:
            found = manager.load([name])
        except Exception as error:  # a task's file may hold code, which raises what it likes
            raise EditorError(f"--tasks {name} cannot be loaded: {one_line(error)}") from error
        groups = found.get("groups") or {}
        inside |= set(found["tasks"]) if name in groups else set()
        loaded |= {name: groups[name]} if name in groups else found["tasks"]
    return [task for name, task in loaded.items() if name not in inside]


def _quiet() -> AbstractContextManager[Any]:
    """The harness's bars and warnings about a model that is loaded already would lie over the report's own bar."""
    return redirect_stderr(io.StringIO())


def _title(key: str) -> str:
    """A metric as the harness names it ("acc,none"), to be read.

    >>> _title("acc,none"), _title("exact_match,strict-match")
    ('acc', 'exact_match (strict-match)')
    """
    metric, _, kind = key.partition(",")
    return metric if kind == "none" else f"{metric} ({kind})"


def _error(values: Mapping[str, Any], key: str) -> float | None:
    """The standard error of a metric; the harness writes "N/A" where there is none."""
    metric, _, kind = key.partition(",")
    error = values.get(f"{metric}_stderr,{kind}")
    return float(error) if isinstance(error, int | float) and math.isfinite(error) else None
