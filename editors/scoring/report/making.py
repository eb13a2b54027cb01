"""`make_report`: edits are made, each alone and some together, and the edited model is asked what users ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

from editors.base_models.loading import longest_text, weights_hash
from editors.common.errors import EditorError
from editors.common.sharding import whole
from editors.edits.protocol import Edit
from editors.lm.frozen import FrozenLM
from editors.making.protocol import EditMethod
from editors.scoring.report import rows
from editors.scoring.report.abilities import PACKAGE, Ability, Tasks
from editors.scoring.report.answers import Answerer
from editors.scoring.report.card import ReportCard, Together
from editors.scoring.report.cases import SAME_QUESTION, ReportCase, cases_hash
from editors.scoring.report.damage import Damage, damage
from editors.scoring.report.measures import Outcome, measured
from editors.scoring.report.outcomes import by_row, means, report_rows
from editors.scoring.report.placebo import RANDOM_UPDATE, SHUFFLED_TARGET, random_update, with_other_targets
from editors.scoring.report.probes import Probe, ProbeMaker
from editors.scoring.report.protocol import protocol
from editors.texts.forms import in_form
from editors.texts.requests import EditRequest

Progress = Callable[[str, int, int], None]

# How many cases are asked again with placebos, are made together, and are tried on running text.
_PLACEBO_CASES, _TOGETHER_CASES, _DAMAGE_EDITS = 16, 100, 4
_TOGETHER_ROWS = (rows.EDIT, rows.PARAPHRASE, SAME_QUESTION, rows.UNRELATED_QUESTION, rows.UNRELATED)
_REAL = "real"
_PACKAGES = ("hyperedit", "torch", "transformers")


def make_report(
    lm: FrozenLM,
    method: EditMethod,
    cases: Sequence[ReportCase],
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    tasks: Tasks | None = None,
    together: Sequence[int] = (1, 10, 100),
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReportCard:
    """The report card of a method.

    Args:
        lm: the base model.
        method: makes the edits.
        cases: the edits, each with its texts.
        texts: running texts of each file, by its name, for perplexity.
        tasks: of lm-evaluation-harness, for general ability before and after the first edit.
        together: for each number, so many edits are made as one; numbers above that of the cases are left out.
        batch_size: edits made at once, at most.
        seed: of placebos, intervals and the choice of examples.
        progress: told what is done, how many steps of it, and of how many.

    Raises:
        EditorError: there is no case, a request is too long for the model, or the tasks cannot be run.
    """
    report = _Report(lm, cases, seed, progress)

    def make(requests: Sequence[EditRequest]) -> Edit:
        return method.make(lm, lm.read([[request] for request in requests]))

    with torch.inference_mode(mode=False), torch.no_grad():
        if tasks is not None:
            report.run(tasks, make([cases[0].request]))
        report.ask_each(make, batch_size, texts or {})
        for count in together:
            report.ask_together(method, count, texts or {})
        return report.card(type(method).__name__)


def report_of_edit(
    lm: FrozenLM,
    edit: Edit,
    cases: Sequence[ReportCase],
    *,
    texts: Mapping[str, Sequence[str]] | None = None,
    tasks: Tasks | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ReportCard:
    """The report card of one edit, which is in force for all cases; arguments and errors are those of `make_report`.

    Args:
        lm: the base model.
        edit: of one episode.
        cases: its requests, each with its texts.
        texts: running texts.
        tasks: as there.
        batch_size: cases asked at once, at most.
        seed: as there.
        progress: as there.
    """
    if edit.num_episodes != 1:
        raise EditorError(f"this edit holds {edit.num_episodes} episodes; select() the one to report on")
    report = _Report(lm, cases, seed, progress)
    with torch.inference_mode(mode=False), torch.no_grad():
        if tasks is not None:
            report.run(tasks, edit)
        report.ask_each(lambda _: edit, batch_size, texts or {}, alone=False)
        return report.card(str(edit.metadata.get("editor", type(edit).__name__)))


Make = Callable[[Sequence[EditRequest]], Edit]


class _Report:
    """A report card in the making.

    Args:
        lm: the base model.
        cases: the edits, each with its texts.
        seed: of all choices.
        progress: told how far it is.
    """

    def __init__(self, lm: FrozenLM, cases: Sequence[ReportCase], seed: int, progress: Progress | None) -> None:
        if not cases:
            raise EditorError("a report card needs at least one edit; the data has none that can be used")
        self._lm, self._cases, self._seed = lm, cases, seed
        self._progress: Progress = progress or (lambda _what, _done, _total: None)
        self._beside = max(
            map(len, lm.texts.prompt_ids([f"{case.request.prompt} {case.request.target}\n" for case in cases]))
        )
        self._answerer = Answerer(lm, self._beside)
        self._left_out: Counter[str] = Counter()
        maker = ProbeMaker(cases, lm.tokenizer)
        self._probes = [self._with_room(maker.probes(number)) for number in range(len(cases))]
        self._outcomes: list[Outcome] = []
        self._placebos: dict[str, list[Outcome] | None] = {}
        self._together: list[Together] = []
        self._damage: dict[str, Damage] = {}
        self._abilities: tuple[Ability, ...] = ()
        self._tasks: Tasks | None = None

    def _with_room(self, probes: Sequence[Probe]) -> list[Probe]:
        room = self._answerer.has_room([probe.prompt for probe in probes])
        self._left_out.update(probe.row for probe, fits in zip(probes, room, strict=True) if not fits)
        return [probe for probe, fits in zip(probes, room, strict=True) if fits]

    def run(self, tasks: Tasks, edit: Edit) -> None:
        """Measure general ability before and after an edit. It comes first: what cannot be run is known at once."""
        self._progress("tasks", 0, 1)
        self._tasks, self._abilities = tasks, tasks.measure(self._lm, edit)
        self._progress("tasks", 1, 1)

    def ask_each(self, make: Make, batch_size: int, texts: Mapping[str, Sequence[str]], *, alone: bool = True) -> None:
        """Each case with its own edit; the first ones with edits that should not work, too.

        Args:
            make: makes the edits of some cases.
            batch_size: how many cases at once.
            texts: running texts.
            alone: whether each request has an edit of its own, which can be made with another target.
        """
        requests = [case.request for case in self._cases]
        others = self._readable(with_other_targets(requests, self._seed)) if alone else None
        edited = set() if alone else self._edited(range(len(self._cases)))
        self._placebos = {SHUFFLED_TARGET: None if others is None else [], RANDOM_UPDATE: []}
        for numbers in self._chunks("edits", len(self._cases), batch_size):
            chosen = slice(numbers.start, numbers.stop)
            edits: dict[str, Edit | None] = {_REAL: make(requests[chosen])}
            real = edits[_REAL]
            assert real is not None
            if not numbers.start and texts:
                some = [real.select(episode) for episode in range(min(real.num_episodes, _DAMAGE_EDITS))]
                self._damage = damage(self._lm, some, texts, self._beside)
            if numbers.start < _PLACEBO_CASES:
                edits[SHUFFLED_TARGET] = None if others is None else make(others[chosen])
                edits[RANDOM_UPDATE] = random_update(real, self._seed + numbers.start)
            made = {kind: edit for kind, edit in edits.items() if edit is not None}
            self._placebos.update(dict.fromkeys(edits.keys() - made.keys()))
            for kind, found in zip(made, self._asked(numbers, list(made.values()), edited=edited), strict=True):
                self._found(kind).extend(found)

    def _readable(self, requests: Sequence[EditRequest] | None) -> Sequence[EditRequest] | None:
        """The requests; `None` if one of them is too long for the model."""
        if requests is None:
            return None
        pairs = [(in_form(self._lm.tokenizer, request.prompt, request.form), request.target) for request in requests]
        return None if any(self._lm.texts.faults(pairs, longest_text(self._lm.model))) else requests

    def _found(self, kind: str) -> list[Outcome]:
        """The outcomes with a kind of edits."""
        found = self._outcomes if kind == _REAL else self._placebos[kind]
        assert found is not None
        return found

    def ask_together(self, method: EditMethod, count: int, texts: Mapping[str, Sequence[str]]) -> None:
        """Some rows, with so many edits made as one; those of single edits are known."""
        if count > len(self._cases):
            return
        last = max(count, min(_TOGETHER_CASES, len(self._cases)) // count * count)
        if count == 1:
            found = [outcome for outcome in self._outcomes if outcome.probe.row in _TOGETHER_ROWS]
            self._add_together(1, len(self._cases), found, self._damage)
            return
        outcomes: list[Outcome] = []
        hurt: dict[str, Damage] = {}
        for numbers in self._chunks(f"{count} edits together", last, count):
            requests = [self._cases[number].request for number in numbers]
            edit = method.make(self._lm, self._lm.read([requests]))
            outcomes += self._asked(numbers, [edit], _TOGETHER_ROWS, self._edited(numbers))[0]
            hurt = damage(self._lm, [edit], texts, self._beside) if texts and not numbers.start else hurt
        self._add_together(count, last // count, outcomes, hurt)

    def _add_together(self, count: int, groups: int, outcomes: Sequence[Outcome], hurt: dict[str, Damage]) -> None:
        found = {row: means(own) for row, own in by_row(outcomes).items()}
        self._together.append(Together(count, groups, found, hurt))

    def _edited(self, numbers: range) -> set[str]:
        """The prompts that must get the target of one of these cases."""
        return {probe.prompt for number in numbers for probe in self._probes[number] if _holds(probe)}

    def _asked(
        self,
        numbers: range,
        edits: Sequence[Edit],
        only: Sequence[str] | None = None,
        edited: Collection[str] = (),
    ) -> list[list[Outcome]]:
        """The probes of some cases, each with the edit of its place among them; for each of several edits.

        Args:
            numbers: the cases.
            edits: each with one episode for each of them, or one for all.
            only: these rows.
            edited: prompts that another of the edits in force changes, so that they need not stay.
        """
        chosen = [
            (number, probe)
            for number in numbers
            for probe in self._probes[number]
            if (only is None or probe.row in only) and (_holds(probe) or probe.prompt not in edited)
        ]
        prompts = [probe.prompt for _, probe in chosen]
        wanted = ["" if probe.expects == "keep" else probe.answer for _, probe in chosen]
        befores = self._answerer.before(prompts, wanted)
        of_edits = self._answerer.after(prompts, edits, [number - numbers.start for number, _ in chosen], wanted)
        return [
            [
                measured(number, probe, self._cases[number].request.target, before.text, after)
                for (number, probe), before, after in zip(chosen, befores, afters, strict=True)
            ]
            for afters in of_edits
        ]

    def _chunks(self, what: str, count: int, size: int) -> Iterator[range]:
        """The numbers up to `count`, some at a time."""
        for start in range(0, count, size):
            self._progress(what, start, count)
            yield range(start, min(start + size, count))
        self._progress(what, count, count)

    def card(self, method: str) -> ReportCard:
        """The finished card."""
        packages = _PACKAGES if self._tasks is None else (*_PACKAGES, PACKAGE)
        return ReportCard(
            method=method,
            model=str(self._lm.model.config.name_or_path),
            base_weights=weights_hash(self._lm.model, torch.bfloat16, whole),
            data=cases_hash(self._cases),
            cases=len(self._cases),
            seed=self._seed,
            protocol=protocol(self._lm, _PLACEBO_CASES)
            | ({} if self._tasks is None else {"abilities": self._tasks.protocol}),
            versions={package: _version(package) for package in packages},
            rows=report_rows(self._cases, self._outcomes, self._placebos, self._left_out, self._seed),
            together=tuple(self._together),
            damage=self._damage,
            abilities=self._abilities,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def _holds(probe: Probe) -> bool:
    return probe.expects == "target"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
