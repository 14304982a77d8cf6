"""One worker of a search on this machine: its study, its runs, what it says while it goes on, and its answer."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import optuna
import pandas as pd

from analytics.confirm import confirm_suite, confirmed
from analytics.frame import asked as asked_columns
from analytics.frame import frame
from analytics.search import Scores, Searcher
from analytics.searched import SearchResult, Tried, result
from analytics.searchfile import Search, changed, load_search, override, unpriced
from analytics.space import Impossible, Space
from analytics.store import load
from analytics.study import (
    StorageProblem,
    default_sampler,
    importance,
    launched,
    names,
    one_at_a_time,
    open_study,
    read_trials,
    sample,
    spent,
)
from bench.cli import FAULT, fail
from bench.cli.options import Asked, place
from bench.cli.run import Lines, execute
from bench.cli.show import takes
from bench.figures.carbon import intensity
from bench.figures.cost import recost
from bench.figures.metrics import row
from bench.files import Busy, read_json, write_text
from bench.folder import EXECUTION, RECORD, SEARCH, WORKER_LOG
from bench.machine.environment import EnvironmentProblem, check_no_gpu_is_hidden, describe, find_machine
from bench.record import Environment, RunRecord, Status, Trial
from bench.redact import redact
from bench.run.launcher import LaunchError
from bench.run.trials import Trials, open_trials
from bench.schema import Machine, RunSpec
from bench.store import tracker as tracking
from bench.store.progress import PATIENCE_SECONDS
from bench.store.tracker import StoreError
from bench.suites import yaml as yamlfile
from bench.suites.expand import expand
from bench.suites.load import SuiteError, load_suite, with_site

JOURNAL, CONFIRM = "study.journal", "confirm.yaml"
_PUBLISH_SECONDS = 30.0
"""So often at most the answer is made and published while the search goes on."""


class _Progress(Lines):
    """Lines of runs, each with its trial and stage; what is left of a trial says nothing of the search."""

    def __init__(self) -> None:
        super().__init__()
        self.trial = ""
        self.folder = Path()

    def start(self, spec: RunSpec, remaining_seconds: float | None) -> None:
        """Show what runs."""
        super().start(spec, None)

    def done(self, record: RunRecord) -> None:
        """Print how a run ended, and where to read why it failed."""
        super().done(record)
        log = self.folder / record.run_id / WORKER_LOG
        if record.status not in (Status.OK, Status.SKIPPED, Status.OUT_OF_MEMORY) and log.exists():
            self.note(f"  its output: {log}")

    def _head(self) -> str:
        return f"[{self.trial}]"


def read(path: Path, *, gpus: str | None, **options: Any) -> Session:
    """Read a search file for this machine; every mistake ends the command with exit code 2 and all messages."""
    try:
        machine, no_gpu = find_machine(gpus)
        asked = with_site(override(load_search(path), options["settings"]), place(options))
        budget = {name: options[name] for name in ("trials", "minutes") if options[name] is not None}
        changes = {name: options[name] for name in ("sampler", "seed") if options[name] is not None}
        asked = changed(asked, changes | {"budget": asked.budget.model_dump() | budget})
        mistakes = list(unpriced(asked))
        if mistakes:
            fail(*mistakes)
        if asked.region is not None:
            intensity(asked.region)
        if "device_type" not in asked.defaults:
            check_no_gpu_is_hidden(no_gpu)
        space = Space.of(asked, machine)
        if space.possible == {}:
            reasons = (f"{count} of them: {why}" for why, count in space.refused.most_common(5))
            fail("no configuration of the space can run on this machine", *reasons, code=1)
        if asked.sampler == "grid" and space.possible is None:
            fail("sampler grid: the space cannot be listed; give ranges of whole numbers, a step or choices, or random")
        return Session(space, machine, Path(options["runs"]).absolute(), options)
    except SuiteError as error:
        fail(*error.messages)
    except (EnvironmentProblem, ValueError) as error:
        fail(str(error))


@dataclass
class Session:
    """A search as the command line asks for it."""

    space: Space
    machine: Machine
    runs: Path
    options: dict[str, Any]
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _published: float = -math.inf

    @property
    def search(self) -> Search:
        """The file, with what the command line changes."""
        return self.space.search

    @property
    def store(self) -> str | None:
        """Tracking URI as given."""
        found: str | None = self.options["store"]
        return found

    @property
    def storage(self) -> str:
        """Where the study is kept."""
        return str(self.options["storage"] or self.runs / self.search.name / JOURNAL)

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return default_sampler(self.space) if self.search.sampler == "auto" else self.search.sampler

    @cached_property
    def environment(self) -> Environment:
        """Where the runs are done."""
        return describe(self.machine)

    @cached_property
    def study(self) -> str:
        """Name of the study; those that `--new` begins have a number after it."""
        text = json.dumps([self.space.identity(), self.environment.kind], sort_keys=True)
        return f"{self.search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def known(self) -> int:
        """Count the configurations that stored runs tell of."""
        if self.options["ignore_stored"]:
            return 0
        searcher = self._searcher(open_study(None, self.search.name, self.space), lambda *_: [])
        return searcher.add_known(self._stored())

    def opened(self, *, make: bool) -> tuple[optuna.Study | None, list[str]]:
        """Open the study, where it is there or is to be made; where it is new, say which others of this search there are."""
        try:
            found = names(self.storage, rf"{re.escape(self.search.name)}-[0-9a-f]{{8}}(-\d+)?")
            others = [name for name in found if not name.startswith(self.study)]
            there, new, study = len(others) < len(found), make and self.options["new"], None
            if there or make:
                study = open_study(self.storage, self.study, self.space, self.search.sampler, new=new)
        except StorageProblem as error:
            fail(redact(str(error)))
        told = f"other studies of it: {', '.join(others[:5])}; each is of one file, machine, environment and price"
        return study, [told] if others and not there else []

    def shown(self) -> tuple[SearchResult, list[str]]:
        """Return the answer of what was tried so far, and what a confirming run said of it."""
        study, others = self.opened(make=False)
        if study is None or not study.trials:
            fail(f"nothing was tried yet in the study {self.study} at {redact(self.storage)}", *others)
        found = self._result(study, "shown as it is; the search was not gone on with")
        files = [file for folder in self._folders(found.study) if (file := folder / CONFIRM).exists()]
        return replace(found, front_file=str(files[-1]) if files and found.points else None), self._confirmed(found)

    def go(self, *, confirm: bool) -> tuple[SearchResult, list[str]]:
        """Search until the budget ends, and repeat the best if asked; what goes wrong ends the command with a message."""
        progress = _Progress()
        study, others = self.opened(make=True)
        assert study is not None  # noqa: S101  it was made
        where: dict[str, Any] = {"runs": self.runs, "store": self.store, "progress": progress}
        where["to_do"] = self.search.budget.trials
        try:
            with open_trials(self.search.suite(), study.study_name, self._likely(), self.machine, **where) as trials:
                progress.folder = trials.execution.folder
                for note in (f"study {study.study_name}, runs in {progress.folder}", *others):
                    progress.note(note)
                found = self._go(study, trials, progress)
                if confirm and found.points:
                    trials.runner.launcher.close()  # its devices stay claimed
                    self._publish(trials, found, self._confirm(found, trials))
                return found, self._confirmed(found)
        except (Busy, EnvironmentProblem) as error:
            fail(str(error))
        except (StorageProblem, LaunchError) as error:
            fail(redact(str(error)), code=FAULT if isinstance(error, StorageProblem) else 1)
        except KeyboardInterrupt:
            progress.end()
            click.echo(
                "bench: stopped; the same command goes on where it ended, --show prints what was found", err=True
            )
            sys.exit(130)
        finally:
            progress.end()

    def _go(self, study: optuna.Study, trials: Trials, progress: _Progress) -> SearchResult:
        def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[Any]:
            of = f" of {self.search.budget.trials}" if self.search.budget.trials else ""
            trial, done = Trial(study=study.study_name, number=number, stage=stage), len(launched(study))
            progress.trial = f"{done + 1}{of}: trial {number}, {stage}"
            return [row(record) for record in trials.run(specs, trial, done)]

        def publish(ended: str) -> SearchResult:
            found, file = self._result(study, ended), trials.execution.folder / CONFIRM
            if found.points:
                write_text(file, yamlfile.write(confirm_suite(found)))
                found = replace(found, front_file=str(file))
            self._publish(trials, found, self._confirmed(found))
            return found

        def told(trial: Any) -> None:
            trials.runner.tell(done=len(launched(study)))
            if time.monotonic() >= self._published + _PUBLISH_SECONDS:
                publish("")

        searcher = self._searcher(study, run, told=told, asking=partial(one_at_a_time, self.storage))
        if not self.options["ignore_stored"] and (count := searcher.add_known(self._stored())):
            progress.note(f"{count} configurations are known from stored runs of this machine")
        try:
            found = publish(searcher.search())
        except KeyboardInterrupt:
            publish("stopped before its end")
            raise
        if not progress.trial and found.ended.endswith("is spent"):
            progress.note(f"nothing was run: {found.ended}, earlier calls included; a larger one (--trials) goes on")
        return found

    def _publish(self, trials: Trials, found: SearchResult, confirmed: list[str]) -> None:
        """Keep the answer in the folder of the execution and in the index, with what a confirming run said."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        trials.publish(found.document() | {"confirmed": confirmed, "written_at": now})
        self._published = time.monotonic()

    def _confirm(self, found: SearchResult, trials: Trials) -> list[str]:
        """Repeat the best configurations in turn, and say what that says of the answer."""
        plan = expand(load_suite(Path(str(found.front_file))), self.machine)
        asked, now = Asked(self.machine, plan, plan), datetime.now(UTC)
        silent = sum(spec.timeout_seconds + PATIENCE_SECONDS for spec in plan.to_do) + PATIENCE_SECONDS
        current = "repeating the best, as a suite of its own"
        trials.runner.tell(current=current, run_began_at=now, remaining_seconds=None, silent_seconds=silent)
        click.echo(f"bench: confirming the best by {len(plan.to_do)} runs; {takes(asked)}", err=True)
        execution = execute(asked, self.runs, self.store, new=False, retry=False, max_minutes=None)
        return confirmed(found, frame(row(record) for record in execution.records.values()))

    def _confirmed(self, found: SearchResult) -> list[str]:
        """Return what a confirming run said of this very front."""
        front = {trial.number for trial in found.front}
        for folder in reversed(self._folders(found.study)):
            kept = read_json(folder / SEARCH) or {}
            if kept.get("confirmed") and {t["number"] for t in kept["trials"] if t["front"]} == front:
                return list(map(str, kept["confirmed"]))
        return []

    def _searcher(self, study: optuna.Study, run: Any, **more: Any) -> Searcher:
        return Searcher(self.space, study, run, Scores(self.search), **more)

    def _likely(self) -> list[RunSpec]:
        """Return runs that the search may ask for: all of them, or some where they cannot be listed."""
        out = []
        for params in (self.space.possible or {}).values() or sample(self.space):
            try:
                out.append(self.space.spec(params))
            except Impossible:
                continue
        return out

    def _stored(self) -> pd.DataFrame:
        """Return the runs in the store that were done in this very environment; none where there is no store."""
        try:
            df = load(self.store)
        except StoreError:
            df = frame([])
        return frame(self._rows(df[df["environment"] == self.environment.fingerprint]))

    def _rows(self, stored: pd.DataFrame) -> list[dict[str, Any]]:
        """Return rows of stored runs.

        Where cost or carbon count, they are those at the place and the prices of this search, of runs of its space alone, and
        runs whose record cannot be read are left out.
        """
        rows, columns = stored.to_dict("records"), asked_columns(stored)
        if not {"cost", "carbon"} & set(self.search.judged):
            return [_present(one) for one in rows]
        rows = [one for one in rows if self.space.params({str(name): one[name] for name in columns}) is not None]
        return [self._row(record) for record in _records(rows, self.store)]

    def _row(self, record: RunRecord) -> dict[str, Any]:
        site = self.search.suite().site
        return dict(row(record if record.site == site else recost(record, site)))

    def _result(self, study: optuna.Study, ended: str) -> SearchResult:
        tried = read_trials(study)
        found = result(self.space, study.study_name, tried, self._table(tried), importance(study), spent(study), ended)
        return replace(found, sampler=self.sampler, storage=redact(self.storage))

    def _table(self, tried: Sequence[Tried]) -> pd.DataFrame:
        """Return the runs of trials; those that are not known yet are read, from the folders here or else from the store."""
        wanted = dict.fromkeys(run for trial in tried for run in trial.runs)
        for name in wanted.keys() - self._known:
            with suppress(OSError, ValueError):
                self._known[name] = self._row(RECORD.read(self.runs / self.search.name / name))
        if lost := wanted.keys() - self._known:
            with suppress(StoreError):
                df = load(self.store)
                rows = self._rows(df[(df["execution"] + "/" + df["run_id"]).isin(lost)])
                self._known |= {f"{one['execution']}/{one['run_id']}": one for one in rows}
        return frame(self._known[name] for name in wanted if name in self._known)

    def _folders(self, study: str) -> list[Path]:
        folders = sorted((self.runs / self.search.name).glob("*"))
        return [folder for folder in folders if (facts := EXECUTION.find(folder)) and facts.study == study]


def _records(rows: list[Any], uri: str | None) -> list[RunRecord]:
    """Return the records of some rows, but for those that cannot be read: imported, lost or of another version."""
    try:
        return tracking.records(rows, uri)
    except StoreError:
        half = len(rows) // 2
        return [*_records(rows[:half], uri), *_records(rows[half:], uri)] if half else []


def _present(one: dict[Any, Any]) -> dict[str, Any]:
    """Return a row of a frame without what is absent in it."""
    return {
        str(name): value.isoformat() if name == "started_at" else value
        for name, value in one.items()
        if pd.notna(value)
    }
