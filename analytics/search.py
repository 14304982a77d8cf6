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
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from analytics import objectives
from analytics.frame import NUMBERS, asked
from analytics.prior import promising
from analytics.searched import Spent, Tried
from analytics.space import EXCLUDED, Impossible, Key, Search, Space
from analytics.study import distribution, storage_errors, suggest
from analytics.words import printable
from bench.metrics import TEXT_COLUMNS, parameters
from bench.record import Status
from bench.schema import RunSpec, Scalar

NEAR = 0.05
"""A configuration is near the front unless another is better by more than this share in everything."""
_SAME_AGAIN, _MOST_ASKED = 5, 100
"""So often in a row may a sampler propose what is known or impossible before something new is drawn at random; and at all."""
_HOPELESS = 5
"""The search ends when so many configurations were tried and none came to anything."""
_KILLED, _ENOUGH, _TELLING = 2, 4, 10
"""A configuration in which the search was killed so often is given up."""
_MARGIN = 300.0
_COLUMNS = "columns"
_JUDGED = [*TEXT_COLUMNS, *NUMBERS]
_RAN = "runs"
"""Name of the constraint that a configuration can run."""
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Row = Mapping[str, Scalar]


class Runner(Protocol):
    """Does runs in order and returns the row (see `bench.metrics.row`) of each."""

    def __call__(self, specs: Sequence[RunSpec], number: int, stage: str) -> list[Row]:
        """Do the runs of one stage (`probe`, `full`) of the trial with a number."""
        ...


@dataclass(frozen=True)
class Scored:
    """What the runs of a configuration came to: values by objective and constraint; `why` where one is not known.

    `absent` is true where runs that ended well do not tell it, and others will not either.
    """

    values: dict[str, float]
    why: str | None = None
    absent: bool = False


@dataclass
class Scores:
    """Judges rows of one configuration, always by the same columns: measured and estimated energy never meet in a study."""

    search: Search
    columns: dict[str, str] = field(default_factory=dict)

    def __call__(self, rows: Iterable[Row]) -> Scored:
        """Return the mean over runs of each objective and of what is limited (geometric where all are positive)."""
        df = pd.DataFrame([dict(row) for row in rows]).reindex(columns=_JUDGED)
        ok = df[df["status"] == Status.OK]
        if ok.empty:
            return Scored({}, _failure(df.iloc[0]))
        if self.search.work.target and not ok["target_reached"].eq(1).all():
            return Scored({}, "the target was not reached in the steps or seconds that were given")
        values = {}
        for name in self.search.judged:
            column = self.columns.get(name) or objectives.column(name, self.search.work, ok)
            if column is None:
                return Scored({}, f"{name} is not known: {objectives.REMEDIES[name]}", absent=True)
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
    _keys: dict[int, Key | None] = field(default_factory=dict)
    _me: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def search(self) -> str:
        """Try configurations until the budget is spent or nothing new is left; return why it ended.

        Raises StorageProblem, and what the runner raises, after which another call goes on with the same configuration.
        """
        began = self.clock()
        before = {"host": socket.gethostname(), "began": datetime.now().astimezone().isoformat(timespec="seconds")}
        with storage_errors(self.study.study_name):
            while True:
                self.study.set_user_attr(f"worker {self._me}", before | {"seconds": self.clock() - began})
                self._take_over()
                ended = self._ended()
                asked_for = None if ended else self._ask()
                if asked_for is None:
                    return ended or self._all_tried() or "the sampler proposes nothing new any more"
                self._try(*asked_for)

    def add_known(self, df: pd.DataFrame) -> int:
        """Add what stored runs of this machine tell of configurations of the space, one trial each; return how many."""
        names = asked(df)
        groups: dict[Key, list[Row]] = defaultdict(list)
        for row in df[df["status"].isin([Status.OK, Status.OUT_OF_MEMORY])].to_dict("records"):
            told = {str(name): value for name, value in row.items()}
            groups[self.space.key({name: told[name] for name in names})].append(told)
        known, count = self._known(), 0
        for same, rows in groups.items():
            params = self.space.params({name: rows[0][name] for name in names})
            if params is None or same in known:
                continue
            scored = self._judge(rows)
            ran = any(row["status"] == Status.OK for row in rows)
            if scored.why is None or not ran:
                self.study.add_trial(self._stored(params, scored, rows))
                count += 1
        return count

    def _stored(self, params: dict[str, Any], scored: Scored, rows: Sequence[Row]) -> FrozenTrial:
        whole = scored.why is None
        attributes = {
            "source": "store",
            "stage": "full" if len(rows) > 1 else "probe",
            "runs": [f"{row['execution']}/{row['run_id']}" for row in rows],
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
        """Return the trial of each configuration that was tried or is under way, by key."""
        out = {}
        for trial in self._trials():
            if trial.state in (*_FINISHED, TrialState.RUNNING):
                if self._keys.get(trial.number) is None:
                    try:
                        self._keys[trial.number] = self.space.key(parameters(self.space.spec(trial.params)))
                    except Impossible:
                        continue
                out[self._keys[trial.number] or frozenset()] = trial.number
        return out

    def _ask(self) -> tuple[Trial, RunSpec] | None:
        """Ask for a configuration that is possible and new; None where none is proposed."""
        for attempt in range(_MOST_ASKED):
            if self.space.search.sampler == "grid" or attempt >= _SAME_AGAIN:
                self._enqueue_new()
            known = self._known()
            if attempt == 0 and self.space.search.sampler not in ("random", "grid"):
                self._look_ahead(known)
            trial = self.study.ask()
            params = suggest(trial, self.space)
            if trial.user_attrs.get("killed", 0) >= _KILLED:
                self._cannot(trial, f"the search was killed in it {_KILLED} times")
                continue
            try:
                number = known.get(self.space.key(parameters(self.space.spec(params))))
                if number is None:
                    return trial, self.space.spec(params, probe=True)
                trial.set_user_attr("why", f"the same as trial {number}")
                self.study.tell(trial, state=TrialState.FAIL)
            except Impossible as error:
                self._cannot(trial, str(error))
        return None

    def _cannot(self, trial: Trial, why: str) -> None:
        """Tell that a configuration does not run: a violated constraint."""
        trial.set_user_attr("why", why)
        trial.set_constraint(_RAN, 1.0)
        self.study.tell(trial, state=TrialState.PRUNED)

    def _enqueue_new(self) -> None:
        """Propose a configuration that was not tried: the next of a grid, or one at random, where all can be listed."""
        if self.space.possible is None:
            return
        known = self._known()
        left = [params for same, params in self.space.possible.items() if same not in known]
        if left:
            random = np.random.default_rng(self.space.search.seed + len(self._trials()))
            self.study.enqueue_trial(
                left[0 if self.space.search.sampler == "grid" else int(random.integers(len(left)))]
            )

    def _look_ahead(self, known: Mapping[Key, int]) -> None:
        """Propose what the law of scaling expects to be better than all that is known, if anything."""
        trials = {trial.number: trial for trial in self._trials()}
        times = {
            same: (trials[number].params, seconds)
            for same, number in known.items()
            if (seconds := trials[number].user_attrs.get("values", {}).get("time"))
        }
        if not any(trial.state is TrialState.WAITING for trial in trials.values()) and len(times) >= _ENOUGH:
            params = promising(self.space, times)
            if params is not None and self.space.key(parameters(self.space.spec(params))) not in known:
                self.study.enqueue_trial(params, user_attrs={"proposed_by": "law of scaling"})

    def _all_tried(self) -> str | None:
        possible = self.space.possible
        if possible is None:
            return None
        if not possible:
            return "no configuration of the space can run on this machine"
        finished = {self._keys.get(trial.number) for trial in self._trials() if trial.state in _FINISHED}
        return f"all {len(possible)} configurations that are possible were tried" if finished >= set(possible) else None

    def _try(self, trial: Trial, spec: RunSpec) -> None:
        """Measure a configuration and tell what came of it; where it is interrupted, it is proposed again."""
        rows: dict[str, Row] = {}
        try:
            trial.set_user_attr("source", "search")
            scored = self._measure(trial, [spec], "probe", rows)
            specs = self._more(trial, scored, rows)
            if specs:
                known = self._measure(trial, specs, "full", rows)
                scored = known if known.why is None else scored
        except BaseException:
            trial.set_user_attr("why", "stopped before its end; proposed again")
            self.study.tell(trial, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={"killed": trial.user_attrs.get("killed", 0)})
            raise
        if scored.why is None:
            for name, excess in self._violations(scored).items():
                trial.set_constraint(name, excess)
            self.study.tell(trial, self._objectives(scored))
        else:
            self._cannot(trial, scored.why)
        self.told(self.study.get_trials(deepcopy=False)[trial.number])

    def _measure(self, trial: Trial, specs: Sequence[RunSpec], stage: str, rows: dict[str, Row]) -> Scored:
        """Do runs; keep in the trial what they were, what they came to, and what they took with those before."""
        trial.set_user_attr("worker", _held_until(time.time() + sum(spec.timeout_seconds for spec in specs) + _MARGIN))
        found = self.run(specs, trial.number, stage)
        rows |= {f"{row['execution']}/{row['run_id']}": row for row in found}
        scored = self._judge(found)
        if scored.why is None or stage == "probe":
            well = [row for row in found if row["status"] == Status.OK]
            trial.set_user_attr("stage", stage)
            trial.set_user_attr("runs", [f"{row['execution']}/{row['run_id']}" for row in well or found])
            trial.set_user_attr("values", scored.values)
            trial.set_user_attr("absent", scored.absent)
        for name, value in _taken(rows.values()).items():
            trial.set_user_attr(name, value)
        return scored

    def _more(self, trial: Trial, scored: Scored, rows: Mapping[str, Row]) -> list[RunSpec]:
        """Return the full runs that a configuration is worth, and that there is time for."""
        if scored.why is not None or any(excess > NEAR for excess in self._violations(scored).values()):
            return []
        signs = [1 if goal.direction == "minimize" else -1 for goal in self.space.search.objectives]
        known = [
            np.multiply(signs, other.values)
            for other in self._trials()
            if other.state is TrialState.COMPLETE and not any(excess > 0 for excess in other.constraints.values())
        ]
        if not near(np.multiply(signs, self._objectives(scored)), known):
            return []
        full = self.space.spec(trial.params)
        count, probe = self.space.search.repeats, next(iter(rows.values()))
        left = self._left("minutes")
        if left is not None:
            longer = (full.measure_seconds or 0.0) - float(probe.get("measure_seconds", 0.0))
            count = min(count, int(60 * left / (float(probe["duration_seconds"]) + max(longer, 0.0))))
        specs = [full.model_copy(update={"repeat": r, "seed": (full.seed + r) % 2**31}) for r in range(count)]
        return [] if [spec.run_id for spec in specs] == [probe["run_id"]] else specs

    def used(self) -> dict[str, float | None]:
        """Return what the study has taken so far, by the names of Budget; None where that is not known."""
        made = [
            t.user_attrs for t in self._trials() if t.user_attrs.get("source") == "search" and "seconds" in t.user_attrs
        ]
        out: dict[str, float | None] = {
            "trials": sum(t.state in _FINISHED and "seconds" in t.user_attrs for t in self._trials())
        }
        workers = [value for name, value in self.study.user_attrs.items() if name.startswith("worker ")]
        out["minutes"] = sum(worker["seconds"] for worker in workers) / 60
        for name in ("joules", "usd"):
            known = [attributes[name] for attributes in made if attributes.get(name) is not None]
            out[name] = sum(known) if known or not made else None
        return out

    def _left(self, name: str) -> float | None:
        """Return what is left of one part of the budget; None where it has no limit."""
        limit, used = getattr(self.space.search.budget, name), self.used()[name]
        return None if limit is None or used is None else limit - used

    def _ended(self) -> str | None:
        """Say why the search is over; None where it goes on."""
        tried = [trial for trial in self._trials() if trial.state in _FINISHED]
        made = [trial.user_attrs for trial in tried if "seconds" in trial.user_attrs]
        spent = self.used()
        for name, limit in self.space.search.budget.model_dump(exclude_none=True).items():
            used = spent[name]
            if used is None:
                return f"the budget is counted in {name}, and what the runs took of it is not known (bench doctor says why)"
            each = [one["seconds"] / 60 if name == "minutes" else one.get(name) or 0.0 for one in made]
            # The next one would take as much as most do, not as one that was repeated.
            if used + (1 if name == "trials" else statistics.median(each) if each else 0.0) > limit:
                return f"the budget of {limit:g} {name} is spent"
        ran = [one for one in made if one.get("values") or one.get("absent")]
        if len(ran) > 1 and all(one.get("absent") for one in ran):
            return str(ran[-1]["why"])
        if len(made) >= _HOPELESS and not any(trial.state is TrialState.COMPLETE for trial in tried):
            return f"none of {len(made)} configurations ran to its end: {made[-1].get('why')}"
        return self._all_tried()

    def _take_over(self) -> None:
        """Propose again what workers were doing that are not there any more."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and not _alive(trial):
                lost = Trial(self.study, trial._trial_id)
                lost.set_user_attr("why", "its worker was killed; proposed again")
                self.study.tell(trial.number, state=TrialState.FAIL)
                killed = trial.user_attrs.get("killed", 0) + 1
                if trial.params:
                    self.study.enqueue_trial(trial.params, user_attrs={"killed": killed})


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


def _taken(rows: Iterable[Row]) -> dict[str, Any]:
    """Sum up what runs took: seconds, joules (measured where all are, else estimated) and money; absent where unknown."""
    rows = list(rows)
    out: dict[str, Any] = {"seconds": sum(float(row["duration_seconds"]) for row in rows)}
    for name in ("run_energy_joules", "run_energy_estimated_joules"):
        known = [float(row[name]) for row in rows if name in row]
        if known and len(known) == len(rows):
            out |= {"joules": sum(known), "joules_estimated": "estimated" in name}
            break
    paid = [float(row["cost_usd"]) for row in rows if "cost_usd" in row]
    return out | ({"usd": sum(paid)} if paid else {})


def read(study: optuna.Study) -> list[Tried]:
    """Return the trials of a study, but for those that were proposed again, told nothing new or were not asked for."""
    out = []
    for trial in study.get_trials(deepcopy=False):
        told, broken = trial.user_attrs, {name: excess for name, excess in trial.constraints.items() if excess > 0}
        if trial.state in (TrialState.FAIL, TrialState.WAITING) or told.get("why") == EXCLUDED:
            continue
        state = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}.get(trial.state, "infeasible")
        out.append(
            Tried(
                number=trial.number,
                state="infeasible" if broken else state,
                stage=told.get("stage"),
                source=told.get("source", "search"),
                params=dict(trial.params),
                values=dict(told.get("values", {})),
                violations=broken,
                runs=tuple(told.get("runs", ())),
                seconds=float(told.get("seconds", 0.0)),
                joules=told.get("joules"),
                joules_estimated=bool(told.get("joules_estimated", False)),
                usd=told.get("usd"),
                why=told.get("why"),
            )
        )
    return out


def spent(study: optuna.Study, tried: Iterable[Tried]) -> Spent:
    """Return what all runs took that were made for a study."""
    made = [one for one in tried if one.source == "search" and one.seconds]
    joules = [one.joules for one in made if one.joules is not None]
    paid = [one.usd for one in made if one.usd is not None]
    return Spent(
        trials=len(made),
        runs=sum(len(one.runs) for one in made),
        seconds=sum(value["seconds"] for name, value in study.user_attrs.items() if name.startswith("worker ")),
        joules=sum(joules) if joules else None,
        joules_estimated=any(one.joules_estimated for one in made),
        usd=sum(paid) if paid else None,
    )


def importance(study: optuna.Study) -> dict[str, dict[str, float]]:
    """Return by objective what share of its spread goes back to each parameter (PED-ANOVA); empty for few trials."""
    out: dict[str, dict[str, float]] = {}
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for index, name in enumerate(study.metric_names if study.metric_names and len(trials) >= _TELLING else []):
        sign = -1.0 if study.directions[index] is optuna.study.StudyDirection.MAXIMIZE else 1.0
        with suppress(ValueError, RuntimeError), warnings.catch_warnings():  # parameters that do not differ
            warnings.simplefilter("ignore")  # that a low value is good
            found = optuna.importance.get_param_importances(study, target=partial(_value, index, sign))
            out[name] = {param: float(share) for param, share in found.items()}
    return out


def _value(index: int, sign: float, trial: FrozenTrial) -> float:
    return sign * float(trial.values[index])
