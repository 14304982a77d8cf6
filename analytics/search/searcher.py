"""Optuna over fields of RunSpec: proposes configurations, has them measured by a runner that is handed in, learns.

Each trial is one configuration. It is measured by one run; one that is not clearly beaten by what is known gets as many
full runs as the search file says. What cannot run, or breaks a constraint, is told to the sampler as a violated
constraint. What is known is in the storage before a trial ends, so a search that is killed goes on where it was.
"""

from __future__ import annotations

import socket
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from analytics.judge import objectives
from analytics.runs.frame import NUMBERS, asked
from analytics.search.file import LENGTH, Search
from analytics.search.space import Impossible, Key, Space
from analytics.search.study import FINISHED, WORKER, distribution, launched, paid, storage_errors, suggest
from analytics.text import printable
from bench.figures.metrics import TEXT_COLUMNS, parameters
from bench.record import Status
from bench.schema import RunSpec, Scalar

NEAR = 0.05
"""A configuration is near the front unless another is better by more than this share in everything."""
_SAME_AGAIN, _MOST_ASKED = 5, 100
"""So often in a row may a sampler propose what is known or impossible before something new is drawn at random; and at all."""
_HOPELESS = 5
"""The search ends when so many configurations one after the other broke down."""
_KILLED = 2
"""A configuration in which the search was killed so often is given up."""
_MARGIN = 300.0
_COLUMNS = "columns"
_JUDGED = ["workload", *TEXT_COLUMNS, *NUMBERS]
_RAN = "runs"
"""Name of the constraint that a configuration can run."""

Row = Mapping[str, Scalar]


class Runner(Protocol):
    """Does runs in order and returns the row (see `bench.figures.metrics.row`) of each."""

    def __call__(self, specs: Sequence[RunSpec], number: int, stage: str) -> list[Row]:
        """Do the runs of one stage (`probe`, `full`) of the trial with a number."""
        ...


@dataclass(frozen=True)
class Scored:
    """What the runs of a configuration came to: values by objective and constraint; `why` where one is not known.

    `absent` is true where runs that ended well do not tell it, and others will not either; `failed` where runs broke down.
    """

    values: dict[str, float]
    why: str | None = None
    absent: bool = False
    failed: bool = False


@dataclass
class Scores:
    """Judges rows of one configuration, always by the same columns: measured and estimated energy never meet in a study."""

    search: Search
    columns: dict[str, str] = field(default_factory=dict)

    def __call__(self, rows: Iterable[Row]) -> Scored:
        """Return the mean over runs of each objective and of what is limited (geometric where all are positive).

        A configuration of which one run does not end well, or misses the target, is none to be recommended.
        """
        own = [name for name in self.search.judged if name.startswith(objectives.OWN)]
        ok = pd.DataFrame([dict(row) for row in rows]).reindex(columns=[*_JUDGED, *own])
        lost = ok[ok["status"] != Status.OK]
        if len(lost):
            return Scored({}, _failure(lost.iloc[0]), failed=bool((lost["status"] == Status.FAILED).all()))
        if self.search.work.target and not ok["target_reached"].eq(1).all():
            return Scored({}, "the target was not reached in the steps or seconds that were given")
        values = {}
        for name in self.search.judged:
            column = self.columns.get(name) or objectives.column(name, self.search.work, ok)
            if column is None:
                return Scored({}, f"{name} is not known: {objectives.remedy(name, ok)}", absent=True)
            self.columns[name] = column
            known = objectives.Objective(
                name, column, self.search.work.samples or self.search.work.tokens or 1.0
            ).values(ok)
            if not np.isfinite(known).all():
                return Scored({}, f"{name} is not known of all runs ({column})", absent=True)
            values[name] = float(np.exp(np.log(known).mean()) if (known > 0).all() else known.mean())
        return Scored(values)


def _failure(row: pd.Series) -> str:
    message = printable(row["error_message"], 200) if isinstance(row["error_message"], str) else ""
    return f"{row['status']}: {message}" if message else str(row["status"])


def near(values: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    """Whether nobody is better by more than NEAR in everything; smaller is better."""
    return not any(np.all(x + NEAR * np.abs(x) <= values) for x in others)


@dataclass
class Searcher:
    """One worker of a study: asks for configurations, has them run, and tells what came of them."""

    space: Space
    study: optuna.Study
    run: Runner
    score: Scores
    told: Callable[[FrozenTrial], None] = lambda trial: None
    clock: Callable[[], float] = time.monotonic
    asking: Callable[[], AbstractContextManager[None]] = nullcontext
    _keys: dict[int, Key] = field(default_factory=dict)
    _me: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    _began: float = 0.0
    _failures: list[str] = field(default_factory=list)

    def search(self) -> str:
        """Try configurations until the budget is spent or nothing new is left; return why it ended.

        Raises StorageProblem, and what the runner raises, after which another call goes on with the same configuration.
        """
        self._began = self.clock()
        with storage_errors(self.study.study_name):
            self._tick()
            if len(self._workers()) > 1:
                self.study.sampler.reseed_rng()  # so that two that begin at once do not draw the same
            while True:
                self._tick()
                with self.asking():  # one at a time: others see what this one takes before they ask
                    self._take_over()
                    ended = self._ended()
                    asked_for = None if ended else self._ask()
                if asked_for is None:
                    why = [f"; the last one: {t.user_attrs['why']}" for t in self._trials() if "why" in t.user_attrs]
                    nothing = f"the sampler proposes nothing new any more{(why or [''])[-1]}"
                    return ended or self._all_tried() or nothing
                with suppress(optuna.exceptions.UpdateFinishedTrialError):  # another took it for lost
                    self._try(*asked_for)

    def _tick(self) -> None:
        """Tell others how long this worker has been at it."""
        known = {"host": socket.gethostname(), "seconds": self.clock() - self._began}
        self.study.set_user_attr(f"{WORKER}{self._me}", known)

    def _workers(self) -> list[dict[str, Any]]:
        return [value for name, value in self.study.user_attrs.items() if name.startswith(WORKER)]

    def add_known(self, df: pd.DataFrame) -> int:
        """Add what stored runs of this machine tell of configurations of the space, one trial each; return how many.

        Of a configuration the longest runs count, if they are as long as a probe at least. Runs of this study are left out.
        """
        names = asked(df)
        groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        usable = df["status"].isin([Status.OK, Status.OUT_OF_MEMORY]) & (df["study"] != self.study.study_name)
        for row in df[usable].to_dict("records"):
            told = {str(name): value for name, value in row.items()}
            groups[self.space.key({name: told[name] for name in names})].append(told)
        known, count = self._known(), 0
        waiting = [
            trial.system_attrs.get("fixed_params") for trial in self._trials() if trial.state is TrialState.WAITING
        ]
        for same, rows in groups.items():
            params = self.space.params({name: rows[0][name] for name in names})
            if params is None or same in known or params in waiting:
                continue
            longest = self._longest(rows, params)
            if not longest or len({row["status"] for row in longest}) > 1:
                continue
            scored = self._judge(longest)
            if scored.why is None or longest[0]["status"] == Status.OUT_OF_MEMORY:
                self.study.add_trial(self._stored(params, scored, longest))
                count += 1
        return count

    def _longest(self, rows: Sequence[dict[str, Any]], params: dict[str, Any]) -> list[dict[str, Any]]:
        """Return those of stored runs that measured longest, unless that is less than a probe measures."""
        least = self.space.spec(params, probe=True).model_dump(
            include={*LENGTH} - {"timeout_seconds"}, exclude_none=True
        )
        enough = [row for row in rows if all(row.get(name, 0) >= value for name, value in least.items())]
        name = "measure_steps" if "measure_steps" in least else "measure_seconds"
        most = max((row[name] for row in enough if name in least), default=None)
        return [row for row in enough if name not in least or row[name] == most]

    def _stored(self, params: dict[str, Any], scored: Scored, rows: Sequence[Row]) -> FrozenTrial:
        whole, full = scored.why is None, self.space.spec(params)
        long = all(
            (getattr(full, name) or 0) <= float(rows[0].get(name) or 0) for name in ("measure_steps", "measure_seconds")
        )
        attributes = {
            "source": "store",
            "stage": "full" if long else "probe",
            "runs": [_name(row) for row in rows],
            "values": scored.values,
            **({} if whole else {"why": scored.why}),
        }
        return create_trial(
            state=TrialState.COMPLETE if whole else TrialState.PRUNED,
            values=self._objectives(scored) if whole else None,
            params=params,
            distributions={name: distribution(self.space.fields[name]) for name in params},
            user_attrs=attributes,
            constraints=self._violations(scored) if whole else {_RAN: 1.0},
        )

    def _judge(self, rows: Sequence[Row]) -> Scored:
        """Judge rows by the columns of the study, which are those of its first runs, whoever did them."""
        self.score.columns |= self.study.user_attrs.get(_COLUMNS, {})
        scored = self.score(rows)
        if self.score.columns != self.study.user_attrs.get(_COLUMNS):
            self.study.set_user_attr(_COLUMNS, self.score.columns)
        return scored

    def _objectives(self, scored: Scored) -> list[float]:
        return [scored.values[goal.name] for goal in self.space.search.objectives]

    def _violations(self, scored: Scored) -> dict[str, float]:
        return {name: limit.excess(scored.values[name]) for name, limit in self.space.search.constraints.items()}

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _known(self) -> dict[Key, int]:
        """Return the trial of each configuration that was tried or is under way, by key; the first where there are two."""
        out: dict[Key, int] = {}
        for trial in self._trials():
            if trial.state in (*FINISHED, TrialState.RUNNING):
                with suppress(Impossible):
                    same = self._keys.get(trial.number) or self.space.key(parameters(self.space.spec(trial.params)))
                    self._keys[trial.number] = same
                    out.setdefault(same, trial.number)
        return out

    def _ask(self) -> tuple[Trial, RunSpec] | None:
        """Ask for a configuration that is possible and new; None where none is proposed."""
        for attempt in range(_MOST_ASKED):
            known = self._known()
            if self.space.search.sampler == "grid" or attempt >= _SAME_AGAIN:
                self._enqueue_new(known)
            trial = self.study.ask()
            params = suggest(trial, self.space)
            if trial.user_attrs.get("killed", 0) >= _KILLED:
                self._cannot(trial, f"the search was killed in it {_KILLED} times")
                continue
            try:
                same = self.space.key(parameters(self.space.spec(params)))
                if same not in known:
                    spec = self.space.spec(params, probe=True)
                    trial.set_user_attr("worker", _held_until(time.time() + spec.timeout_seconds + _MARGIN))
                    return trial, spec
                trial.set_user_attr("why", f"the same as trial {known[same]}")
                self.study.tell(trial, state=TrialState.FAIL)
            except Impossible as error:
                self._cannot(trial, str(error))
        return None

    def _cannot(self, trial: Trial, why: str) -> None:
        """Tell that a configuration does not run: a violated constraint."""
        trial.set_user_attr("why", why)
        trial.set_constraint(_RAN, 1.0)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _enqueue_new(self, known: Mapping[Key, int]) -> None:
        """Propose a configuration that was not tried: the next of a grid, or one at random, where all can be listed."""
        left = [params for same, params in (self.space.possible or {}).items() if same not in known]
        grid = self.space.search.sampler == "grid"
        if left:
            random = np.random.default_rng(self.space.search.seed + len(self._trials()))
            params = left[0 if grid else int(random.integers(len(left)))]
            self.study.enqueue_trial(params)

    def _all_tried(self) -> str | None:
        possible = self.space.possible
        trials = {trial.number: trial for trial in self._trials()}
        if possible is None or any(trial.state is TrialState.WAITING for trial in trials.values()):
            return None
        finished = {same for same, number in self._known().items() if trials[number].state in FINISHED}
        return f"all {len(possible)} configurations that are possible were tried" if finished >= set(possible) else None

    def _try(self, trial: Trial, spec: RunSpec) -> None:
        """Measure a configuration and tell what came of it; where it is interrupted, it is proposed again."""
        paid: dict[str, Any] = {}
        try:
            trial.set_user_attr("source", "search")
            scored, rows = self._measure(trial, [spec], "probe", paid)
            if specs := self._more(trial, scored, rows[0]):
                scored, rows = self._measure(trial, specs, "full", paid)
        except optuna.exceptions.UpdateFinishedTrialError:
            raise
        except BaseException:
            with suppress(Exception):  # what stopped it may be the storage itself
                trial.set_user_attr("why", "stopped before its end; proposed again")
                self.study.tell(trial, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs={"killed": trial.user_attrs.get("killed", 0)})
            raise
        self._failures = [*self._failures, str(scored.why)] if scored.failed else []
        if scored.why is None:
            for name, excess in self._violations(scored).items():
                trial.set_constraint(name, excess)
            self.study.tell(trial, self._objectives(scored), skip_if_finished=True)
        else:
            self._cannot(trial, scored.why)
        self.told(self._trials()[trial.number])

    def _measure(
        self, trial: Trial, specs: Sequence[RunSpec], stage: str, paid: dict[str, Any]
    ) -> tuple[Scored, Sequence[Row]]:
        """Do runs; keep in the trial what they were and came to, and what they took with those before."""
        trial.set_user_attr("worker", _held_until(time.time() + sum(spec.timeout_seconds for spec in specs) + _MARGIN))
        rows = self.run(specs, trial.number, stage)
        paid |= {_name(row): _taken(row) for row in rows}
        trial.set_user_attr("paid", paid)
        self._tick()
        scored = self._judge(rows)
        trial.set_user_attr("stage", stage)
        trial.set_user_attr("runs", [_name(row) for row in rows])
        trial.set_user_attr("values", scored.values)
        trial.set_user_attr("absent", scored.absent)
        return scored, rows

    def _more(self, trial: Trial, scored: Scored, probe: Row) -> list[RunSpec]:
        """Return the full runs that a configuration is worth, and that the budget has room for."""
        if scored.why is not None or any(excess > NEAR for excess in self._violations(scored).values()):
            return []
        signs = [1 if goal.direction == "minimize" else -1 for goal in self.space.search.objectives]
        feasible = [t for t in self._trials() if t.state is TrialState.COMPLETE and not _broken(t)]
        if not near(np.multiply(signs, self._objectives(scored)), [np.multiply(signs, t.values) for t in feasible]):
            return []
        full, seconds = self.space.spec(trial.params), float(probe["duration_seconds"])
        longer = (full.measure_seconds or 0.0) - float(probe.get("measure_seconds", 0.0))
        times = 1 + max(longer, 0.0) / seconds if seconds else 1.0
        count, one, used = self.space.search.repeats, _taken(probe) | {"minutes": seconds / 60}, self.used()
        for name, limit in self.space.search.budget.model_dump(exclude_none=True, exclude={"trials"}).items():
            if one.get(name) and used[name] is not None:
                count = min(count, int((limit - used[name]) / (one[name] * times)))
        specs = [full.changed(repeat=r, seed=(full.seed + r) % 2**31) for r in range(count)]
        return [] if [spec.run_id for spec in specs] == [probe["run_id"]] else specs

    def used(self) -> dict[str, Any]:
        """Return what the study has taken so far, by the names of Budget; None where that is not known."""
        took = paid(self.study)
        busy = sum(trial.state is TrialState.RUNNING and "worker" in trial.user_attrs for trial in self._trials())
        out: dict[str, Any] = {"trials": len(launched(self.study)) + busy}
        out["minutes"] = sum(worker["seconds"] for worker in self._workers()) / 60
        for name in ("joules", "usd"):
            known = [one[name] for one in took.values() if name in one]
            out[name] = sum(known) if known or not took else None
        return out

    def _ended(self) -> str | None:
        """Say why the search is over; None where it goes on."""
        made, used = launched(self.study), self.used()
        took = [trial.user_attrs["paid"].values() for trial in made]
        for name, limit in self.space.search.budget.model_dump(exclude_none=True).items():
            if used[name] is None:
                return f"the budget is counted in {name}, and what the runs took of it is not known (bench doctor says why)"
            # The next one would take as much as the first run of most.
            each = [next(iter(one)).get("seconds" if name == "minutes" else name, 0.0) for one in took]
            usual = statistics.median(each) if each else 0.0
            if used[name] + (1 if name == "trials" else usual / 60 if name == "minutes" else usual) > limit:
                return f"the budget of {limit:g} {name} is spent"
        ran = [trial.user_attrs for trial in made if trial.user_attrs.get("values") or trial.user_attrs.get("absent")]
        if len(ran) > 1 and all(one.get("absent") for one in ran):
            return str(ran[-1]["why"])
        if len(self._failures) >= _HOPELESS:
            return f"the last {len(self._failures)} configurations broke down: {self._failures[-1]}"
        return self._all_tried()

    def _take_over(self) -> None:
        """Propose again what workers were doing that are not there any more."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and not _alive(trial):
                with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another was faster
                    Trial(self.study, trial._trial_id).set_user_attr("why", "its worker was killed; proposed again")
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    killed = trial.user_attrs.get("killed", 0) + 1
                    if trial.params:
                        self.study.enqueue_trial(trial.params, user_attrs={"killed": killed})


def _name(row: Row) -> str:
    return f"{row['execution']}/{row['run_id']}"


def _broken(trial: FrozenTrial) -> bool:
    """Whether a trial breaks a constraint."""
    return any(excess > 0 for excess in trial.constraints.values())


def _held_until(end: float) -> dict[str, Any]:
    """Say which process works at a trial, and until when at most (seconds since 1970), for those who cannot see it."""
    me = psutil.Process()
    return {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time(), "until": end}


def _alive(trial: FrozenTrial) -> bool:
    """Whether somebody still works at a trial."""
    held = trial.user_attrs.get("worker")
    if held is None:  # it was asked for, and no more
        return trial.datetime_start is not None and (datetime.now() - trial.datetime_start).total_seconds() < 60
    if held["host"] != socket.gethostname():
        return bool(time.time() < held["until"])
    try:
        return bool(abs(psutil.Process(held["pid"]).create_time() - held["started"]) < 1)
    except psutil.NoSuchProcess:
        return False


def _taken(row: Row) -> dict[str, float]:
    """Return what a run took: seconds, joules (`estimated` is 1 where they are a model's) and usd; absent where unknown."""
    out = {"seconds": float(row["duration_seconds"])}
    for name, estimated in (("run_energy_joules", 0.0), ("run_energy_joules_estimated", 1.0)):
        if name in row:
            out |= {"joules": float(row[name]), "estimated": estimated}
            break
    return out | ({"usd": float(row["cost_usd"])} if "cost_usd" in row else {})
