"""The study of a search: where Optuna keeps it, by which sampler, and what its trials say when they are read again."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from analytics.search.file import Choices, Range, label
from analytics.search.result import Spent, Tried
from analytics.search.space import EXCLUDED, Space
from bench.errors import UserError
from bench.files import held
from bench.redact import redact

WORKER = "worker "
"""Beginning of the names under which workers tell how long they have been at it."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_LOCK_SECONDS = 20
_STARTUP, _TELLING = 8, 30


class StorageProblem(UserError):
    """The study cannot be read or written; the message says why and what to do."""


@contextmanager
def storage_errors(where: str, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of a storage, and `more` kinds of them, into StorageProblem."""
    kinds: tuple[type[Exception], ...] = (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError, *more)
    try:
        yield
    except kinds as error:
        lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        locked = "; another process holds it: try again when it has ended" if "locked" in lines[0] else ""
        raise StorageProblem(redact(f"the study at {where} cannot be used: {lines[0]}{locked}")) from error


_OPENING = (ValueError, ImportError, KeyError)
"""What Optuna raises for a storage that it cannot open."""


def open_study(where: str | None, name: str, space: Space, sampler: str = "auto", *, new: bool = False) -> optuna.Study:
    """Open the newest study of a name or make it: in a journal file, in a database if `where` is a URL, or in memory.

    With `new` another one is begun, `name-2` and so on. Raises StorageProblem.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    goals = space.search.objectives
    others = [] if where is None else names(where, rf"{re.escape(name)}(-\d+)?")
    newest = max((int(other[len(name) + 1 :] or 1) for other in others), default=0)
    number = newest + new if newest else 1
    with storage_errors(str(where), *_OPENING):
        study = optuna.create_study(
            storage=None if where is None else _storage(where),
            study_name=name if number < 2 else f"{name}-{number}",
            directions=[goal.direction for goal in goals],
            load_if_exists=True,
        )
        study.set_metric_names([goal.name for goal in goals])
        # Going on does not draw the same again.
        study.sampler = make_sampler(sampler, space, space.search.seed + len(study.get_trials(deepcopy=False)))
    return study


@contextmanager
def one_at_a_time(where: str) -> Iterator[None]:
    """Keep the other workers of a study in a journal file waiting; those of a database may, rarely, ask for the same."""
    if "://" in where:
        yield
        return
    with held(Path(f"{where}.asking")):
        yield


def names(where: str, pattern: str) -> list[str]:
    """Return the names of the studies in a storage that match; no file is created. Raises StorageProblem."""
    path = Path(where.removeprefix("sqlite:///"))
    with storage_errors(where, *_OPENING):
        there = path.exists() or ("://" in where and not path.parent.is_dir())
        found = optuna.get_all_study_names(_storage(where)) if there else []
    return sorted(name for name in found if re.fullmatch(pattern, name))


def _storage(where: str) -> BaseStorage:
    if "://" in where:
        local = where.startswith("sqlite")
        return RDBStorage(where, engine_kwargs={"connect_args": {"timeout": _LOCK_SECONDS}} if local else None)
    path = Path(where)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_SECONDS)
    if path.exists():
        _mend(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off a line that was being written when its process was killed: Optuna would stumble over it for ever."""
    lock.acquire()
    try:
        text = path.read_bytes()
        if text.startswith(b'{"op_code"') and not text.endswith(b"\n"):  # nothing else is touched
            os.truncate(path, text.rfind(b"\n") + 1)
    finally:
        lock.release()


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """Return a sampler of Optuna by its name in the search file.

    `auto` is TPE, which finds the front of a recorded grid in the fewest trials (`python -m tests.searching`), and learns
    from what could not run, too. A `grid` is proposed by the searcher.
    """
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    if name in ("nsga2", "nsga3"):
        kind = optuna.samplers.NSGAIISampler if name == "nsga2" else optuna.samplers.NSGAIIISampler
        return kind(seed=seed, population_size=20)
    if name in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    several = len(space.search.objectives) > 1
    conditional = any(domain.when for domain in space.fields.values())
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=conditional, constant_liar=not several, n_startup_trials=_STARTUP
    )


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Have a trial take a value for each field of the space that is set."""
    params: dict[str, Any] = {}
    for name, domain in space.fields.items():
        if space.active(name, params):
            params[name] = take(trial, name, domain)
    return params


def take(trial: optuna.Trial, name: str, domain: Choices | Range) -> Any:
    """Have a trial take a value for one field."""
    known = distribution(domain)
    if isinstance(known, CategoricalDistribution):
        return trial.suggest_categorical(name, known.choices)
    suggest: Any = trial.suggest_int if isinstance(known, IntDistribution) else trial.suggest_float
    return suggest(name, known.low, known.high, step=known.step, log=known.log)


def distribution(domain: Choices | Range) -> CategoricalDistribution | IntDistribution | FloatDistribution:
    """Return values of a field as Optuna describes them."""
    if isinstance(domain, Choices):
        return CategoricalDistribution([label(value) for value in domain.choices])
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, domain.log, domain.step)


def launched(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended and for which something ran."""
    return [t for t in study.get_trials(deepcopy=False, states=FINISHED) if t.user_attrs.get("paid")]


def paid(study: optuna.Study) -> dict[str, dict[str, float]]:
    """Return by run what all runs took that were made for a study, those of interrupted trials too.

    Seconds, joules (`estimated` is 1 where they are a model's) and usd; absent where unknown.
    """
    out: dict[str, dict[str, float]] = {}
    for trial in study.get_trials(deepcopy=False):
        out |= trial.user_attrs.get("paid", {})
    return out


def _sum(took: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Sum up what runs took; joules of the kind that most of them tell, measured and estimated are never added."""
    took = list(took)
    joules = [[one["joules"] for one in took if one.get("estimated") == kind] for kind in (0.0, 1.0)]
    estimated = len(joules[1]) > len(joules[0])
    usd = [one["usd"] for one in took if "usd" in one]
    return {
        "seconds": sum(one["seconds"] for one in took),
        "joules": sum(joules[estimated]) if joules[estimated] else None,
        "joules_estimated": estimated,
        "usd": sum(usd) if usd else None,
    }


def read_trials(study: optuna.Study) -> list[Tried]:
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
                why=told.get("why"),
                **_sum(told.get("paid", {}).values()),
            )
        )
    return out


def spent(study: optuna.Study) -> Spent:
    """Return what all runs took that were made for a study, and how long its workers were at it."""
    took = paid(study)
    workers = [value["seconds"] for name, value in study.user_attrs.items() if name.startswith(WORKER)]
    total = _sum(took.values()) | {"seconds": sum(workers)}
    return Spent(trials=len(launched(study)), runs=len(took), **total)


def importance(study: optuna.Study) -> dict[str, dict[str, float]]:
    """Return by objective how far each parameter sets the best trials apart (PED-ANOVA), as shares; empty for few trials."""
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
