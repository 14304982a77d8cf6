"""The study of a search: where Optuna keeps it, by which sampler, and what its trials say when they are read again."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from analytics.space import Choices, Range, Space, label

_LOCK_SECONDS = 20
_STARTUP, _MANY = 8, 1000


class StorageProblem(Exception):
    """The study cannot be read or written; the message says why and what to do."""


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn errors of a storage into StorageProblem."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        locked = "; another process holds it: try again when it has ended" if "locked" in lines[0] else ""
        raise StorageProblem(f"the study at {where} cannot be used: {lines[0]}{locked}") from error


def open_study(where: str | None, name: str, space: Space, sampler: str = "auto", *, new: bool = False) -> optuna.Study:
    """Open the newest study of a name or make it: in a journal file, in a database if `where` is a URL, or in memory.

    With `new` another one is begun, `name-2` and so on. Raises StorageProblem.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    goals = space.search.objectives
    with storage_errors(str(where)):
        try:
            storage = None if where is None else _storage(where)
            names = [] if storage is None else optuna.get_all_study_names(storage)
            known = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", other) is not None for other in names)
            number = known + new if known else 1
            study = optuna.create_study(
                storage=storage,
                study_name=name if number < 2 else f"{name}-{number}",
                directions=[goal.direction for goal in goals],
                load_if_exists=True,
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise StorageProblem(f"{where} is no storage of a study that can be used: {error}") from error
        study.set_metric_names([goal.name for goal in goals])
        # Going on does not draw the same again.
        study.sampler = make_sampler(sampler, space, space.search.seed + len(study.get_trials(deepcopy=False)))
    return study


def names(where: str, pattern: str) -> list[str]:
    """Return the names of the studies in a storage that match; no file is created. Raises StorageProblem."""
    path = Path(where.removeprefix("sqlite:///"))
    with storage_errors(where):
        try:
            there = path.exists() or ("://" in where and not path.parent.is_dir())
            found = optuna.get_all_study_names(_storage(where)) if there else []
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise StorageProblem(f"{where} is no storage of a study that can be used: {error}") from error
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
        if not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)
    finally:
        lock.release()


def make_sampler(name: str, space: Space, seed: int) -> BaseSampler:
    """Return a sampler of Optuna by its name in the search file."""
    several = len(space.search.objectives) > 1
    conditional = any(domain.when for domain in space.fields.values())
    if name == "auto":
        name = default_sampler(space)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
    if name == "nsga3":
        return optuna.samplers.NSGAIIISampler(seed=seed, population_size=20)
    if name in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=conditional, constant_liar=not several, n_startup_trials=_STARTUP
    )


def default_sampler(space: Space) -> str:
    """Choose a sampler: TPE, which finds the front of a recorded grid in the fewest trials (`python -m tests.searching`).

    It learns from what could not run, too. Its own time grows with the trials: beyond _MANY it is NSGA-II, and NSGA-III for
    four objectives.
    """
    if (space.search.budget.trials or 0) <= _MANY:
        return "tpe"
    return "nsga3" if len(space.search.objectives) > 3 else "nsga2"


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Have a trial take a value for each field of the space that is set."""
    params: dict[str, Any] = {}
    for name, domain in space.fields.items():
        if space.active(name, params):
            params[name] = take(trial, name, domain)
    return params


def take(trial: optuna.Trial, name: str, domain: Choices | Range) -> Any:
    """Have a trial take a value for one field."""
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, [label(value) for value in domain.choices])
    if domain.whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def distribution(domain: Choices | Range) -> BaseDistribution:
    """Return values of a field as Optuna describes them."""
    if isinstance(domain, Choices):
        return CategoricalDistribution([label(value) for value in domain.choices])
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, domain.log, domain.step)


def sample(space: Space, count: int = 100) -> list[dict[str, Any]]:
    """Return some configurations of a space, drawn at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), space) for _ in range(count)]
