"""The runs of a search on this machine. Unlike those of a suite, the next ones depend on the results so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.files import Busy, write_json
from bench.folder import SEARCH
from bench.machine.claim import claim
from bench.record import Environment, RunRecord, Trial
from bench.run.runner import (
    Execution,
    Forecast,
    Progress,
    Runner,
    earlier,
    load_records,
    locked,
    new_folder,
    surroundings,
    terminable,
    write_facts,
)
from bench.schema import Machine, RunSpec, Suite
from bench.suites.expand import Expansion


@dataclass
class Trials:
    """The runs of one worker of a search: one execution, whose node stays warm between trials."""

    runner: Runner
    started: bool = False

    @property
    def execution(self) -> Execution:
        """The execution of this worker."""
        return self.runner.execution

    def run(self, specs: Sequence[RunSpec], trial: Trial, done: int = 0) -> list[RunRecord]:
        """Do the runs of a trial in order and return their records; `done` is the number of trials before it.

        Runs that this execution has a record of are not repeated. Raises EnvironmentProblem or LaunchError where the node
        cannot be started, KeyboardInterrupt after Ctrl-C or SIGTERM.
        """
        known, runner = self.execution.records, self.runner
        runner.context = replace(runner.context, trial=trial)
        missing = [spec for spec in specs if spec.run_id not in known]
        if missing and not self.started:
            runner.start()
            self.started = True
        forecast = Forecast(missing, known.values())
        for spec in missing:
            runner.progress.start(spec, forecast.remaining_seconds)
            runner.begin(spec, done, None, of=f"trial {trial.number}, {trial.stage}: ")
            record = runner.one(spec)
            runner.keep(record)
            forecast.ended(spec, record)
        return [known[spec.run_id] for spec in specs]

    def publish(self, document: dict[str, Any]) -> None:
        """Write the document of the search to the folder of the execution and to the index."""
        write_json(self.execution.folder / SEARCH, document)
        self.runner.noted(lambda: self.runner.tracker.attach(document))


@contextmanager
def open_trials(
    search: Suite,
    study: str,
    likely: Sequence[RunSpec],
    machine: Machine,
    *,
    runs: Path,
    store: str | None,
    progress: Progress | None = None,
    to_do: int | None = None,
) -> Iterator[Trials]:
    """Claim the devices of this machine for a worker of a search, and resume or create an execution of its study.

    `search` gives the name, the site and `idle_seconds`; `likely` are runs that the search may do, for which modules are
    imported and meters started. `progress` receives events of runs only; `to_do` is the budget in trials. The node starts
    with the first run. In the index the execution ends as FINISHED, or as KILLED after an exception. Raises Busy where other
    processes hold the devices, EnvironmentProblem where torch cannot do the runs, Stopped after Ctrl-C or SIGTERM.
    """
    plan = Expansion(search, list(likely))
    environment = surroundings(plan, machine)
    with ExitStack() as stack:
        stack.enter_context(claim(machine, likely))
        execution = _execution(stack, runs.absolute() / search.name, plan, study, environment)
        stack.enter_context(terminable(" --show prints the answer so far."))
        runner = Runner.make(execution, machine, environment, store, progress or Progress())
        runner.tell(to_do=to_do, unit="trials")
        finished = False
        try:
            runner.index()
            yield Trials(runner)
            finished = True
        finally:
            runner.launcher.close()
            runner.tell(current=None, ended=True, stopped=not finished)
            runner.tracker.close(finished=finished)


def _execution(stack: ExitStack, folder: Path, plan: Expansion, study: str, environment: Environment) -> Execution:
    """Lock the newest execution of a study that no other worker holds, or a new one."""
    digest = f"search-{study}"
    for found in earlier(folder, environment, digest):
        try:
            stack.enter_context(locked(found))
        except Busy:
            continue
        return Execution(found, plan, resumed=True, records=load_records(found))
    made = new_folder(folder, environment)
    stack.enter_context(locked(made))  # before others can find it
    write_facts(made, plan, environment, digest, study=study)
    return Execution(made, plan, resumed=False)
