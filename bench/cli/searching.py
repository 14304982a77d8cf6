"""One worker of a search on this machine: its study, its runs, what it says while it goes on, and its answer."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import optuna
import pandas as pd
import yaml

from analytics.confirm import confirm_suite, confirmed
from analytics.frame import frame
from analytics.search import Scores, Searcher
from analytics.searched import SearchResult, Tried, result
from analytics.space import Impossible, Search, Space, changed, load_search, override, unpriced
from analytics.store import load
from analytics.study import StorageProblem, default_sampler, importance, open_study, read_trials, sample, spent
from bench.carbon import intensity
from bench.cli import fail
from bench.cli.options import Asked, place
from bench.cli.run import Lines, execute
from bench.environment import EnvironmentProblem, check_no_gpu_is_hidden, describe, find_machine
from bench.files import Busy, read_json, write_text
from bench.launch.local import LaunchError
from bench.metrics import row
from bench.record import Trial
from bench.runner import load_records
from bench.schema import Machine, RunSpec
from bench.suite import SuiteError, expand, load_suite, with_site
from bench.tracking import StoreError
from bench.trials import Trials, open_trials

JOURNAL, CONFIRM = "study.journal", "confirm.yaml"


class _Progress(Lines):
    """Lines of runs, each with its trial and stage."""

    def __init__(self) -> None:
        super().__init__()
        self.trial = ""

    def _head(self) -> str:
        return f"[{self.trial}]"


def read(path: Path, *, gpus: str | None, **options: Any) -> Session:
    """Read a search file for this machine; every mistake ends the command with exit code 2 and all messages."""
    try:
        machine, no_gpu = find_machine(gpus)
        asked = with_site(override(load_search(path), options["settings"]), place(options))
        budget = {name: options[name] for name in ("trials", "minutes") if options[name] is not None}
        asked = changed(asked, {"budget": asked.budget.model_dump() | budget} if budget else {})
        asked = changed(asked, {"sampler": options["sampler"]} if options["sampler"] else {})
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
        return Session(space, machine, Path(options["runs"]).absolute(), options)
    except SuiteError as error:
        fail(*error.messages)
    except (EnvironmentProblem, ValueError) as error:
        fail(str(error))


@dataclass(frozen=True)
class Session:
    """A search as the command line asks for it."""

    space: Space
    machine: Machine
    runs: Path
    options: dict[str, Any]

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

    def known(self) -> int:
        """Count the configurations that stored runs tell of."""
        searcher = self._searcher(open_study(None, self.search.name, self.space), lambda *_: [])
        return searcher.add_known(self._stored())

    def shown(self) -> SearchResult:
        """Return the answer of what was tried so far."""
        study = self._study(new=False)
        if not study.trials:
            fail(f"nothing was tried yet in the study {study.study_name} at {self.storage}")
        return self._result(
            study, "shown as it is; the search was not gone on with", self._confirm_file(study.study_name)
        )

    def go(self) -> SearchResult:
        """Search until the budget ends; what goes wrong ends the command with a message."""
        progress = _Progress()
        try:
            study = self._study(new=self.options["new"])
            suite = self.search.suite()
            with open_trials(
                suite,
                study.study_name,
                self._likely(),
                self.machine,
                runs=self.runs,
                store=self.store,
                progress=progress,
            ) as trials:
                return self._go(study, trials, progress)
        except (Busy, EnvironmentProblem) as error:
            fail(str(error))
        except (StorageProblem, LaunchError) as error:
            fail(str(error), code=1)
        except KeyboardInterrupt:
            progress.end()
            click.echo("bench: stopped; the same command goes on where this one ended", err=True)
            sys.exit(130)
        finally:
            progress.end()

    def _go(self, study: optuna.Study, trials: Trials, progress: _Progress) -> SearchResult:
        def run(specs: Sequence[RunSpec], number: int, stage: str) -> list[Any]:
            of = f"/{self.search.budget.trials}" if self.search.budget.trials else ""
            progress.trial = f"trial {(searcher.used()['trials'] or 0) + 1:.0f}{of} {stage}"
            return [
                row(record) for record in trials.run(specs, Trial(study=study.study_name, number=number, stage=stage))
            ]

        def publish(ended: str) -> SearchResult:
            found = self._result(study, ended, trials.execution.folder / CONFIRM)
            trials.publish(found.document() | {"written_at": datetime.now(UTC).isoformat(timespec="seconds")})
            return found

        searcher = self._searcher(study, run, told=lambda trial: publish(""))
        progress.note(f"study {study.study_name}, runs in {trials.execution.folder}")
        if not self.options["ignore_stored"] and (count := searcher.add_known(self._stored())):
            progress.note(f"{count} configurations are known from stored runs of this machine")
        try:
            found = publish(searcher.search())
        except KeyboardInterrupt:
            publish("stopped before its end")
            raise
        if found.points:
            text = yaml.safe_dump(confirm_suite(found), sort_keys=False, allow_unicode=True)
            write_text(trials.execution.folder / CONFIRM, text)
        return found

    def confirm(self, found: SearchResult) -> list[str]:
        """Repeat the best configurations in turn, and say what that says of the answer."""
        if found.front_file is None or not Path(found.front_file).exists():
            fail("there is nothing to confirm: the search has not ended")
        plan = expand(load_suite(Path(found.front_file)), self.machine)
        execution = execute(
            Asked(self.machine, plan, plan), self.runs, self.store, new=False, retry=False, max_minutes=None
        )
        return confirmed(found, frame(row(record) for record in execution.records.values()))

    def _study(self, *, new: bool) -> optuna.Study:
        text = json.dumps([self.space.identity(), describe(self.machine).kind], sort_keys=True)
        name = f"{self.search.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        try:
            return open_study(self.storage, name, self.space, self.search.sampler, new=new)
        except StorageProblem as error:
            fail(str(error), code=1)

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
        return df[df["environment"] == describe(self.machine).fingerprint]

    def _result(self, study: optuna.Study, ended: str, file: Path | None) -> SearchResult:
        tried = read_trials(study)
        found = result(
            self.space, study.study_name, tried, self._rows(study, tried), importance(study), spent(study), ended
        )
        known = str(file) if file is not None and found.points else None
        return replace(found, sampler=self.sampler, storage=self.storage, front_file=known)

    def _rows(self, study: optuna.Study, tried: Sequence[Tried]) -> pd.DataFrame:
        """Return the runs of the study: of the workers whose folders are here, and what else the store has of them."""
        own = [row(record) for folder in self._folders(study.study_name) for record in load_records(folder).values()]
        here = {f"{one['execution']}/{one['run_id']}" for one in own}
        if {run for trial in tried for run in trial.runs} <= here:
            return frame(own)
        try:
            df = load(self.store)
        except StoreError:
            return frame(own)
        names = df["execution"] + "/" + df["run_id"]
        wanted = names.isin({run for trial in tried for run in trial.runs} - here)
        return frame([*own, *(_known(one) for one in df[wanted].to_dict("records"))])

    def _folders(self, study: str) -> list[Path]:
        files = sorted((self.runs / self.search.name).glob("*/execution.json"))
        return [path.parent for path in files if (read_json(path) or {}).get("study") == study]

    def _confirm_file(self, study: str) -> Path | None:
        files = [folder / CONFIRM for folder in self._folders(study)]
        return next((path for path in reversed(files) if path.exists()), None)


def _known(one: dict[Any, Any]) -> dict[str, Any]:
    """Return a row of a frame without what is absent in it."""
    return {
        str(name): value.isoformat() if name == "started_at" else value
        for name, value in one.items()
        if pd.notna(value)
    }
