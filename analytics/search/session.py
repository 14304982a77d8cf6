"""One worker of a search on this machine: its study, its runs, what it reports while it runs, and its answer."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from analytics.plan.preview import Preview
from analytics.runs.frame import asked as asked_columns
from analytics.runs.frame import frame
from analytics.runs.store import load
from analytics.search.confirm import confirm_suite
from analytics.search.file import Search, changed, load_search, override, unpriced
from analytics.search.result import SearchResult, Tried, result
from analytics.search.searcher import Scores, Searcher
from analytics.search.space import Impossible, Space
from analytics.search.study import (
    StorageProblem,
    importance,
    launched,
    names,
    one_at_a_time,
    open_study,
    read_trials,
    spent,
)
from analytics.text import counted
from bench.errors import FAILED, FAULT, UserError
from bench.figures.cost import recost
from bench.figures.metrics import row
from bench.figures.regions import intensity
from bench.files import read_json, write_text
from bench.folder import EXECUTION, RECORD, SEARCH
from bench.machine.environment import check_no_gpu_is_hidden, describe, find_machine
from bench.record import Environment, RunRecord, Trial
from bench.redact import redact
from bench.run.runner import Progress, run_suite
from bench.run.trials import Trials, open_trials
from bench.schema import Machine, RunSpec
from bench.store import tracker as tracking
from bench.store.progress import PATIENCE_SECONDS
from bench.store.tracker import StoreError
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand
from bench.suites.load import load_suite, with_site

JOURNAL, CONFIRM = "study.journal", "confirm.yaml"
_PUBLISH_SECONDS = 30.0
"""The answer is made and published at most this often while the search runs."""


class SearchProgress(Progress):
    """What a listener may show while a search runs: `trial` names the current trial, `folder` holds the runs."""

    trial = ""
    folder = Path()


def read(
    path: Path,
    *,
    gpus: str | None,
    settings: Sequence[str],
    site: Mapping[str, Any],
    changes: Mapping[str, Any],
    budget: Mapping[str, Any],
    **options: Any,
) -> Session:
    """Read a search file for this machine, with the fields, the budget and the site that the command line changes.

    `options` are fields of Session. Raises UserError with all mistakes; with exit code 1 where no configuration can run.
    """
    machine, no_gpu = find_machine(gpus)
    search = with_site(override(load_search(path), settings), dict(site))
    search = changed(search, {**changes, "budget": search.budget.model_dump() | dict(budget)})
    if mistakes := list(unpriced(search)):
        raise UserError(*mistakes)
    if search.region is not None:
        intensity(search.region)
    if "device_type" not in search.defaults:
        check_no_gpu_is_hidden(no_gpu)
    space = Space.of(search, machine)
    if space.possible == {}:
        reasons = (f"{count} configurations: {reason}" for reason, count in space.refused.most_common(5))
        raise UserError("no configuration of the space can run on this machine", *reasons, code=FAILED)
    if search.sampler == "grid" and space.possible is None:
        raise UserError(
            "sampler grid: the space cannot be listed; give ranges of whole numbers, a step or choices, or use random"
        )
    return Session(space, machine, **options)


@dataclass
class Session:
    """A search on this machine, as one worker does it.

    `runs` is the folder of the runs, `store` the tracking URI, `storage` a journal file or database URL for the study (None:
    a journal in `runs`). `sentences` puts an answer into words, `confirmed` what its confirming runs say.
    `new` begins another study; `ignore_stored` leaves out what stored runs already tell.
    """

    space: Space
    machine: Machine
    runs: Path
    sentences: Callable[[SearchResult], list[str]]
    confirmed: Callable[[SearchResult, pd.DataFrame], list[str]]
    store: str | None = None
    storage: str | None = None
    new: bool = False
    ignore_stored: bool = False
    _rows_by_run: dict[str, dict[str, Any]] = field(default_factory=dict)
    _published: float = -math.inf

    @property
    def search(self) -> Search:
        """The file, with what the command line changes."""
        return self.space.search

    @property
    def location(self) -> str:
        """Where the study is kept."""
        return self.storage or str(self.runs / self.search.name / JOURNAL)

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return "tpe" if self.search.sampler == "auto" else self.search.sampler

    @cached_property
    def environment(self) -> Environment:
        """Where the runs are done."""
        return describe(self.machine)

    @cached_property
    def study(self) -> str:
        """Name of the study; those that `new` begins have a number after it."""
        text = json.dumps([self.space.identity(), self.environment.kind], sort_keys=True)
        return f"{self.search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def preview(self) -> dict[str, Any]:
        """Describe what would be searched: combinations, possible, refused, known, sampler and budget.

        Raises StorageProblem for a storage that cannot be used.
        """
        self.opened(make=False)
        space = self.space
        combinations, possible = (None if each is None else len(each) for each in (space.listed(), space.possible))
        return {
            "combinations": combinations,
            "possible": possible,
            "refused": dict(space.refused.most_common()),
            "known": self.known(),
            "sampler": self.sampler,
            "budget": self.search.budget.model_dump(exclude_none=True),
        }

    def known(self) -> int:
        """Count the configurations that stored runs already tell."""
        if self.ignore_stored:
            return 0
        searcher = self._searcher(open_study(None, self.search.name, self.space), lambda *_: [])
        return searcher.add_known(self._stored())

    def opened(self, *, make: bool) -> tuple[optuna.Study | None, list[str]]:
        """Open the study if it exists or is to be made; for a new one, also name the other studies of this search."""
        studies = names(self.location, rf"{re.escape(self.search.name)}-[0-9a-f]{{8}}(-\d+)?")
        others = [name for name in studies if not name.startswith(self.study)]
        exists, study = len(others) < len(studies), None
        if exists or make:
            study = open_study(self.location, self.study, self.space, self.search.sampler, new=make and self.new)
        note = f"other studies of this search: {', '.join(others[:5])} (of another file, machine, software or price)"
        return study, [note] if others and not exists else []

    def shown(self) -> tuple[SearchResult, list[str]]:
        """Return the answer so far, and the sentences of a confirming run. Raises UserError where nothing was tried."""
        study, notes = self.opened(make=False)
        if study is None or not study.trials:
            raise UserError(f"nothing was tried yet in the study {self.study} at {redact(self.location)}", *notes)
        answer = self._result(study, "not resumed")
        files = [file for folder in self._folders(answer.study) if (file := folder / CONFIRM).exists()]
        front_file = str(files[-1]) if files and answer.points else None
        return replace(answer, front_file=front_file), self._confirmed(answer)

    def go(self, progress: SearchProgress, confirm: Progress | None = None) -> tuple[SearchResult, list[str]]:
        """Search until the budget is spent; then repeat the best if there is a listener for that, `confirm`.

        Return the answer and the sentences of the confirming run. Raises UserError, Stopped after Ctrl-C or SIGTERM.
        """
        study, notes = self.opened(make=True)
        assert study is not None  # noqa: S101  it was made
        where: dict[str, Any] = {"runs": self.runs, "store": self.store, "progress": progress}
        where["to_do"] = self.search.budget.trials
        try:
            with open_trials(self.search.suite(), study.study_name, self._likely(), self.machine, **where) as trials:
                progress.folder = trials.execution.folder
                for note in (f"study {study.study_name}, runs in {progress.folder}", *notes):
                    progress.note(note)
                answer = self._go(study, trials, progress)
                if confirm is not None and answer.points:
                    trials.runner.launcher.close()  # its devices stay claimed
                    self._publish(trials, answer, self._confirm(answer, trials, confirm))
                return answer, self._confirmed(answer)
        except StorageProblem as error:
            raise StorageProblem(*error.messages, code=FAULT) from error

    def _go(self, study: optuna.Study, trials: Trials, progress: SearchProgress) -> SearchResult:
        def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[Any]:
            total = f" of {self.search.budget.trials}" if self.search.budget.trials else ""
            trial, done = Trial(study=study.study_name, number=number, stage=stage), len(launched(study))
            progress.trial = f"{done + 1}{total}: trial {number}, {stage}"
            return [row(record) for record in trials.run(specs, trial, done)]

        def publish(ended: str) -> SearchResult:
            answer, file = self._result(study, ended), trials.execution.folder / CONFIRM
            if answer.points:
                write_text(file, yamlfile.write(confirm_suite(answer)))
                answer = replace(answer, front_file=str(file))
            self._publish(trials, answer, self._confirmed(answer))
            return answer

        def after_trial(trial: Any) -> None:
            trials.runner.tell(done=len(launched(study)))
            if time.monotonic() >= self._published + _PUBLISH_SECONDS:
                publish("")

        searcher = self._searcher(study, run, told=after_trial, asking=partial(one_at_a_time, self.location))
        if not self.ignore_stored and (count := searcher.add_known(self._stored())):
            progress.note(f"{counted(count, 'configuration')} known from stored runs")
        try:
            answer = publish(searcher.search())
        except KeyboardInterrupt:
            publish("stopped before its end")
            raise
        if not progress.trial and answer.ended.endswith("is spent"):
            progress.note(f"nothing was run: {answer.ended}; --trials with a larger number resumes the search")
        return answer

    def _publish(self, trials: Trials, answer: SearchResult, sentences: list[str]) -> None:
        """Keep the answer, with the sentences of a confirming run, in the folder of the execution and in the store."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        trials.publish(
            answer.document() | {"sentences": self.sentences(answer), "confirmed": sentences, "written_at": now}
        )
        self._published = time.monotonic()

    def _confirm(self, answer: SearchResult, trials: Trials, progress: Progress) -> list[str]:
        """Repeat the best configurations in turn; return the sentences on what that confirms."""
        expansion = expand(load_suite(Path(str(answer.front_file))), self.machine)
        preview, now = Preview(self.machine, expansion, expansion), datetime.now(UTC)
        silent = sum(spec.timeout_seconds + PATIENCE_SECONDS for spec in expansion.to_do) + PATIENCE_SECONDS
        current = "repeating the best, as a suite of its own"
        trials.runner.tell(current=current, run_began_at=now, remaining_seconds=None, silent_seconds=silent)
        progress.note(f"repeating the best: {counted(len(expansion.to_do), 'run')}; {preview.takes()}")
        execution = run_suite(expansion, self.machine, runs=self.runs, store=self.store, progress=progress)
        return self.confirmed(answer, frame(row(record) for record in execution.records.values()))

    def _confirmed(self, answer: SearchResult) -> list[str]:
        """Return the sentences of a confirming run of this very front; none without one."""
        front = {trial.number for trial in answer.front}
        for folder in reversed(self._folders(answer.study)):
            document = read_json(folder / SEARCH) or {}
            if document.get("confirmed") and {t["number"] for t in document["trials"] if t["front"]} == front:
                return list(map(str, document["confirmed"]))
        return []

    def _searcher(self, study: optuna.Study, run: Any, **more: Any) -> Searcher:
        return Searcher(self.space, study, run, Scores(self.search), **more)

    def _likely(self) -> list[RunSpec]:
        """Return the runs that the search may ask for: all, or a sample where they cannot be listed."""
        specs = []
        for params in (self.space.possible or {}).values() or self.space.drawn():
            with suppress(Impossible):
                specs.append(self.space.spec(params))
        return specs

    def _stored(self) -> pd.DataFrame:
        """Return the stored runs of this very environment; none where there is no store."""
        try:
            df = load(self.store)
        except StoreError:
            return frame([])
        return self._priced(df[df["environment"] == self.environment.fingerprint])

    def _priced(self, df: pd.DataFrame) -> pd.DataFrame:
        """Recompute cost and carbon of stored runs for the site of this search, where they count.

        Then runs outside its space, and those whose record cannot be read, are left out.
        """
        if not {"cost", "carbon"} & set(self.search.judged):
            return df
        columns = asked_columns(df)
        rows = [
            row for row in df.to_dict("records") if self.space.params({str(c): row[c] for c in columns}) is not None
        ]
        return frame(self._row(record) for record in _records(rows, self.store))

    def _row(self, record: RunRecord) -> dict[str, Any]:
        site = self.search.suite().site
        return dict(row(record if record.site == site else recost(record, site)))

    def _result(self, study: optuna.Study, ended: str) -> SearchResult:
        trials = read_trials(study)
        answer = result(
            self.space, study.study_name, trials, self._table(trials), importance(study), spent(study), ended
        )
        return replace(answer, sampler=self.sampler, storage=redact(self.location))

    def _table(self, trials: Sequence[Tried]) -> pd.DataFrame:
        """Return the runs of trials, read from the folders here, or else from the store."""
        wanted = dict.fromkeys(run for trial in trials for run in trial.runs)
        for name in wanted.keys() - self._rows_by_run:
            with suppress(OSError, ValueError):
                self._rows_by_run[name] = self._row(RECORD.read(self.runs / self.search.name / name))
        here = frame(self._rows_by_run[name] for name in wanted if name in self._rows_by_run)
        if lost := wanted.keys() - self._rows_by_run:
            with suppress(StoreError):
                df = load(self.store)
                stored = self._priced(df[(df["execution"] + "/" + df["run_id"]).isin(lost)])
                return pd.concat([here, stored], ignore_index=True) if len(here) else stored
        return here

    def _folders(self, study: str) -> list[Path]:
        folders = sorted((self.runs / self.search.name).glob("*"))
        return [folder for folder in folders if (facts := EXECUTION.find(folder)) and facts.study == study]


def _records(rows: list[Any], uri: str | None) -> list[RunRecord]:
    """Return the records of some rows, except those that cannot be read: imported, lost or of another version."""
    try:
        return tracking.records(rows, uri)
    except StoreError:
        half = len(rows) // 2
        return [*_records(rows[:half], uri), *_records(rows[half:], uri)] if half else []
