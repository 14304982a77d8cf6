"""The search file, and what it means on a machine: which configurations there are, and which of them cannot be.

name: cost-efficiency
defaults: {workload: decoder_lm, ...}              # fields of a run, as in a suite
space:
precision: [fp32, bf16]                          # choices
batch_size_per_device: {low: 1, high: 64, log: true}
parallelism: [ddp, tp]
parallelism.size: {choices: [2, 4], when: {parallelism: tp}}
objectives: [time, cost]                           # for `work`: {samples: ...}, {tokens: ...} or target
constraints: {memory: {max: 2.0e+9}}
budget: {trials: 30, minutes: 8}
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pandas as pd
from pydantic import Field, ValidationError, field_validator, model_validator

from bench import yamlfile
from bench.metrics import parameters
from bench.registry import did_you_mean
from bench.schema import COMMAND, Choice, Count, Machine, Model, Positive, RunSpec, Scalar, Site, Slug, Suite
from bench.suite import FIELDS, SuiteError, available_devices, branches, expand, for_device_type, messages

Name = Literal["time", "cost", "energy", "carbon", "memory", "loss", "accuracy"]
OBJECTIVES = {name: "maximize" if name == "accuracy" else "minimize" for name in get_args(Name)}
"""What a search can go for, and the way that is better."""
QUALITY = ("loss", "accuracy")
MOST_LISTED = 20_000
"""Spaces with at most so many configurations are listed, so that it is known when all were tried."""
LENGTH = ("measure_steps", "measure_seconds", "warmup_steps", "warmup_seconds", "timeout_seconds")
"""Fields that say how long is measured, not what: runs that differ in them alone tell of one configuration."""
EXCLUDED = "left out by exclude"
_DRAWN = 200
"""So many combinations are looked at for mistakes where not all can be listed."""
_NOT_SEARCHED = {"saves", "needs", "seed", "meters", "validation", "target", *LENGTH}
_BESIDE = {*LENGTH, "meters", "seed", "repeat", "ladder", "launcher"}


class Choices(Model):
    """Values that a field may take, of a list. `when` maps earlier fields to the values (one or a list) that it needs."""

    choices: Annotated[list[Any], Field(min_length=1)]
    when: dict[str, Any] = {}

    def values(self) -> list[Any]:
        """All values."""
        return self.choices


class Range(Model):
    """Numbers from `low` to `high`: whole ones if both and the step are, by steps of `step`, or on a logarithmic scale."""

    low: int | float
    high: int | float
    step: Annotated[int | float, Field(gt=0)] | None = None
    log: bool = False
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: true needs a low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers."""
        return all(isinstance(x, int) for x in (self.low, self.high, self.step if self.step is not None else 1))

    def values(self) -> list[Any] | None:
        """All values, or None where there are too many to list."""
        step = self.step if self.step is not None else 1
        if (not self.whole and self.step is None) or (self.high - self.low) / step >= MOST_LISTED:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.low + k * step for k in range(count)]


class Goal(Model):
    """An objective: what counts, and whether less or more of it is better."""

    name: Name
    direction: Literal["minimize", "maximize"]


class Amount(Model):
    """The work that objectives are counted for: so many samples or tokens, or the training until a target is reached."""

    samples: Positive | None = None
    tokens: Positive | None = None
    target: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.samples, self.tokens, self.target or None].count(None) != 2:
            raise ValueError("give {samples: NUMBER}, {tokens: NUMBER}, or target")
        return self


class Limit(Model):
    """The least or the most that an objective may be, whether it is searched for or not."""

    max: float | None = None
    min: float | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if self.max is None and self.min is None:
            raise ValueError("give {max: NUMBER}, {min: NUMBER} or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def excess(self, value: float) -> float:
        """By what share of the limit a value breaks it; 0 or less where it does not."""
        over = [] if self.max is None else [(value - self.max) / (abs(self.max) or 1.0)]
        return max([*over, *([] if self.min is None else [(self.min - value) / (abs(self.min) or 1.0)])])


class Budget(Model):
    """What the search may take, whatever ends first. Energy and money are those of its runs, minutes those of its workers."""

    trials: Count | None = None
    minutes: Positive | None = None
    joules: Positive | None = None
    usd: Positive | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give at least one of trials, minutes, joules and usd: a search needs an end")
        return self


class Search(Site):
    """A search file, as written. `defaults` and `exclude` are those of a suite, `space` maps fields of a run to values.

    Every trial is measured by one run (shortened by the fields in `probe`); one that is on or near the front so far
    gets `repeats` runs as long as the defaults say.
    """

    name: Slug
    description: Annotated[str, Field(max_length=2000)] = ""
    defaults: dict[str, Any] = {}
    space: Annotated[dict[str, Any], Field(min_length=1)]
    exclude: list[dict[str, Any]] = []
    objectives: Annotated[tuple[Goal, ...], Field(min_length=1, max_length=4)]
    work: Amount = Amount(samples=1e6)
    constraints: dict[Name, Limit] = {}
    budget: Budget
    sampler: Literal["auto", "tpe", "gp", "nsga2", "nsga3", "random", "grid"] = "auto"
    probe: dict[str, Any] = {}
    repeats: Annotated[int, Field(ge=1, le=100)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    idle_seconds: Annotated[float, Field(ge=0, le=600)] = 3.0

    @field_validator("objectives", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
            if len(set(value)) < len(value):
                raise ValueError(f"an objective stands twice in {', '.join(value)}")
            value = {name: OBJECTIVES.get(name, "minimize") for name in value}
        if not isinstance(value, dict):
            return value
        if not 1 <= len(value) <= 4:
            raise ValueError(f"give one to four of {', '.join(OBJECTIVES)}, not {len(value)}")
        for name, direction in value.items():
            if name not in OBJECTIVES:
                raise ValueError(f"no objective {name!r}: {did_you_mean(str(name), OBJECTIVES)}")
            if direction != OBJECTIVES[name]:
                raise ValueError(f"{name}: {OBJECTIVES[name]}, not {direction!r}")
        return tuple({"name": name, "direction": direction} for name, direction in value.items())

    @field_validator("work", mode="before")
    @classmethod
    def _target(cls, value: Any) -> Any:
        return {"target": True} if value == "target" else value

    @property
    def judged(self) -> list[str]:
        """Names of what is searched for or limited, the objectives first."""
        return list(dict.fromkeys([goal.name for goal in self.objectives] + list(self.constraints)))

    @property
    def trains_to_the_end(self) -> bool:
        """Whether each run trains for all of `work`, since what counts is how good the model is then."""
        return bool(set(QUALITY) & set(self.judged)) and not self.work.target

    def suite(self, name: str | None = None, **fields: Any) -> Suite:
        """Return a suite at the same place and prices, with the same defaults."""
        shared = {key: getattr(self, key) for key in ("description", "defaults", "idle_seconds", *Site.model_fields)}
        return Suite.model_validate({"name": name or self.name, **shared, **fields})


def load_search(path: Path) -> Search:
    """Read a search file. Raises SuiteError with all mistakes that can be seen without a machine."""
    try:
        value = yamlfile.read(path)
    except yamlfile.YamlError as error:
        raise SuiteError([f"{path}: {error}"]) from error
    if not isinstance(value, dict) or "space" not in value:
        hint = (
            "; this is a suite: bench run"
            if isinstance(value, dict) and {"matrix", "include", "ladder"} & set(value)
            else ""
        )
        raise SuiteError([f"{path}: a search is a mapping with name, defaults, space, objectives and budget{hint}"])
    try:
        search = Search.model_validate(value, strict=True)
    except ValidationError as error:
        raise SuiteError(f"{path}: {message}" for message in messages(error, Search.model_fields)) from error
    found = [*_space_mistakes(search), *_mistakes(search)]
    if found:
        raise SuiteError(f"{path}: {message}" for message in found)
    return search


def changed(search: Search, fields: Mapping[str, Any]) -> Search:
    """Return a search with other fields. Raises SuiteError."""
    try:
        return Search.model_validate(search.model_dump() | dict(fields), strict=True)
    except ValidationError as error:
        raise SuiteError(messages(error, Search.model_fields)) from error


def override(search: Search, settings: Iterable[str]) -> Search:
    """Apply `key=value` settings of the command line: fields of Search, or of a run; a list is searched over.

    Values are YAML. Raises SuiteError.
    """
    defaults, space, top = dict(search.defaults), dict(search.space), {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        try:
            value = yamlfile.parse(text)
        except yamlfile.YamlError as error:
            raise SuiteError([f"--set {setting}: {error}"]) from error
        if not equals or not name:
            raise SuiteError([f"--set {setting!r}: give key=value"])
        if name in Search.model_fields:
            top[name] = value
            continue
        if name.partition(".")[0] not in FIELDS:
            raise SuiteError([f"--set: unknown field {name!r}: {did_you_mean(name, [*FIELDS, *Search.model_fields])}"])
        varies = (
            isinstance(value, list)
            or value == "auto"
            or (isinstance(value, dict) and bool({"low", "choices"} & set(value)))
        )
        within = "." in name and name.partition(".")[0] in space  # an option of what varies varies with it
        if varies or within:
            defaults.pop(name, None)
            space[name] = value if varies else [value]
        else:
            space.pop(name, None)
            defaults[name] = value
    found = changed(search, {"defaults": defaults, "space": space, **top})
    mistakes = [*_space_mistakes(found), *_mistakes(found)]
    if mistakes:
        raise SuiteError(f"--set: {mistake}" for mistake in mistakes)
    return found


def _domain(given: Any) -> Choices | Range:
    """Read what is written of a field in the space. Raises SuiteError."""
    try:
        if isinstance(given, list):
            return Choices(choices=given)
        if isinstance(given, dict):
            return (Choices if "choices" in given else Range).model_validate(given, strict=True)
    except ValidationError as error:
        raise SuiteError(messages(error)) from error
    raise SuiteError(
        [f"give a list of values, {{low: ..., high: ...}} or {{choices: [...], when: ...}}, not {given!r}"]
    )


def _space_mistakes(search: Search) -> Iterator[str]:
    earlier: dict[str, list[Any]] = {name: [label(value)] for name, value in search.defaults.items() if _plain(value)}
    for name, given in search.space.items():
        where = f"space: {name!r}"
        if (field := name.partition(".")[0]) not in FIELDS:
            yield f"{where} is no field of a run: {_option_of(name) or did_you_mean(name, FIELDS)}"
        elif field in _NOT_SEARCHED:
            yield f"{where} cannot be searched over: it says how a run is measured or what it keeps, not how it trains"
        each: list[list[Any]] = [[] for _ in branches(given)]
        for branch, labels in zip(branches(given), each, strict=True):
            if branch == "auto" and name == "devices":
                continue
            try:
                domain = _domain(branch)
                labels += map(label, domain.choices if isinstance(domain, Choices) else [])
                yield from (f"{where}: when {message}" for message in _never(domain.when, earlier))
            except SuiteError as error:
                yield from (f"{where}: {message}" for message in error.messages)
            if len(set(map(str, labels))) < len(labels):
                yield f"{where}: a value stands twice"
        earlier[name] = [value for labels in each for value in labels] if all(each) else []  # not known: any will do


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _option_of(name: str) -> str | None:
    """Say of which field something is an option that is often searched over."""
    return f"it is an option: write optimizer.{name}" if name in ("learning_rate", "weight_decay", "momentum") else None


def _never(when: Mapping[str, Any], earlier: Mapping[str, list[Any]]) -> Iterator[str]:
    """Tell what a condition needs that no earlier field ever is."""
    for other, wanted in when.items():
        if other not in earlier:
            yield f"names {other!r}, which does not stand before it"
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if (known := earlier.get(other)) and label(value) not in known:
                yield f"needs {other} {value!r}, which is none of its values: {did_you_mean(str(value), map(str, known))}"


def _mistakes(search: Search) -> Iterator[str]:
    """Tell what objectives, constraints and lengths ask for that the runs cannot tell."""
    asked = {*search.defaults, *search.space}
    if twice := set(search.defaults) & set(search.space):
        yield f"{', '.join(sorted(twice))} stands in defaults and in space: leave it out of the defaults"
    if search.defaults.get("workload") == COMMAND and search.trains_to_the_end:
        yield "loss and accuracy of a command are not known"
    if search.work.target and not any(name.partition(".")[0] == "target" for name in asked):
        yield "work: target needs defaults with target: {metric: ..., value: ...}, and validation: {every_steps: ...}"
    if search.trains_to_the_end and {"measure_steps", "measure_seconds"} & asked:
        yield "loss and accuracy are those after `work`: leave measure_steps and measure_seconds out of the defaults"
    if search.trains_to_the_end and search.work.samples is None:
        yield "loss and accuracy are those after `work`, which is counted in samples here: work: {samples: NUMBER}"
    if search.probe and (search.work.target or search.trains_to_the_end):
        yield "probe: a shorter training tells nothing of the loss, the accuracy or the way to a target: leave probe out"
    for rule in search.exclude:
        for name in {name for name in rule if name.partition(".")[0] not in FIELDS}:
            yield f"exclude: unknown field {name!r}: {did_you_mean(name, FIELDS)}"
    for name in set(search.probe) - set(LENGTH):
        yield f"probe: {name!r} is none of {', '.join(LENGTH)}"


def unpriced(search: Search) -> Iterator[str]:
    """Tell what is asked for that needs a price or a region, where none is given."""
    prices = [getattr(search, name) for name in Site.model_fields if name.startswith("usd_")]
    if "cost" in search.judged and not any(price is not None for price in prices):
        yield "cost needs a price: --price USD (an hour of a device), or --electricity-price; or write it into the file"
    if search.budget.usd is not None and not any(price is not None for price in prices):
        yield "budget: usd needs a price: --price USD (an hour of a device); or write it into the file"
    if search.defaults.get("meters") == [] and (search.budget.joules or {"energy", "carbon"} & set(search.judged)):
        yield "energy and carbon need a meter: leave meters: [] out of the defaults"
    if "carbon" in search.judged and search.region is None:
        yield "carbon needs a region: --region FR; or write it into the file"


def label(value: Any) -> Scalar | None:
    """Return a choice as Optuna keeps it and people read it: a name with options becomes `name-option=value`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        return str(Choice.model_validate(value))
    except ValueError as error:
        raise SuiteError([f"{value!r} is neither a value nor {{name: ..., option: ...}}"]) from error


Key = frozenset[tuple[str, str]]


class Impossible(Exception):
    """A configuration that this machine cannot run, or that makes no sense: the reason, then the mistakes that it has."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Space:
    """The space of a search on a machine: `fields` maps each field that varies to its values.

    `refused` counts, once they were listed, the combinations that cannot run here by the reason.
    """

    search: Search
    machine: Machine
    fields: Mapping[str, Choices | Range]
    probe: Mapping[str, Any]
    refused: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    _specs: dict[Any, RunSpec | tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, search: Search, machine: Machine) -> Self:
        """Resolve what differs by machine. Raises SuiteError where nothing is left to search over."""
        device_type = str(search.defaults.get("device_type", machine.device_type))
        written = for_device_type(search.space, device_type)
        threads = search.defaults.get("threads_per_device", 1)
        if written.get("devices") == "auto":
            most = available_devices(machine, device_type, threads if isinstance(threads, int) and threads > 0 else 1)
            written["devices"] = sorted({*(2**k for k in range(20) if 2**k <= most), max(most, 1)})
        if not written:
            raise SuiteError([f"the space says nothing about {device_type}, which is what this machine has"])
        fields = {name: _domain(given) for name, given in written.items()}
        return cls(search, machine, fields, for_device_type(search.probe, device_type))

    def _mistakes(self) -> Iterator[str]:
        """Tell the mistakes that all combinations have, or all of one choice. Which devices there are differs by machine."""
        found: dict[tuple[str, Any], set[str]] = {}
        for params in self.listed() or map(self._drawn, range(_DRAWN)):
            told = set()
            try:
                self.spec(params)
            except Impossible as error:
                told |= set(error.args[1:])
                if str(error) == EXCLUDED:
                    continue
            for pair in (("", None), *params.items()):
                found[pair] = found.get(pair, told) & told
        for (name, _), mistakes in found.items():
            if name != "devices" and not isinstance(self.fields.get(name), Range):
                yield from sorted(mistakes)

    def _drawn(self, seed: int) -> dict[str, Any]:
        """Return one configuration, with numbers at the ends of their ranges."""
        draw = random.Random(seed)  # noqa: S311  nothing is kept secret
        params: dict[str, Any] = {}
        for name, domain in self.fields.items():
            if self.active(name, params):
                values = domain.choices if isinstance(domain, Choices) else (domain.low, domain.high)
                params[name] = label(draw.choice(values))
        return params

    def active(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether a field is set at all, given the earlier ones."""
        fixed = self.search.defaults
        for other, wanted in self.fields[name].when.items():
            given = params.get(other) if other in self.fields else label(fixed.get(other))
            if given not in map(label, wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def listed(self) -> list[dict[str, Any]] | None:
        """Return the parameters of all configurations, in the order of the file; None where there are too many."""
        found: list[dict[str, Any]] = [{}]
        for name, domain in self.fields.items():
            values = domain.values()
            if values is None or len(found) * len(values) > MOST_LISTED:
                return None
            found = [
                params | extra
                for params in found
                for extra in ([{name: label(value)} for value in values] if self.active(name, params) else [{}])
            ]
        return found

    def cell(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of a run, as written in the file."""
        out: dict[str, Any] = {}
        for name, given in params.items():
            domain = self.fields[name]
            values = {label(value): value for value in domain.choices} if isinstance(domain, Choices) else {}
            out[name] = values.get(given, given)
        return out

    def spec(self, params: Mapping[str, Any], *, probe: bool = False) -> RunSpec:
        """Return the run of some parameters, of full length or shortened. Raises Impossible."""
        which = (probe, *sorted(params.items()))
        if which not in self._specs:
            try:
                self._specs[which] = self._expanded(params, probe=probe)
            except Impossible as error:
                self._specs[which] = error.args
        if isinstance(known := self._specs[which], tuple):
            raise Impossible(*known)
        return known

    def _expanded(self, params: Mapping[str, Any], *, probe: bool) -> RunSpec:
        whole = self.search.trains_to_the_end
        cell = self.cell(params) | (dict(self.probe) if probe else {})
        cell |= {"measure_steps": 1, "warmup_seconds": 0.0} if whole else {}
        try:
            matrix = {name: [value] for name, value in cell.items()}
            plan = expand(self.search.suite(exclude=self.search.exclude, matrix=matrix), self.machine)
        except SuiteError as error:
            excluded = "all excluded" in error.messages[0]
            raise Impossible(*([EXCLUDED] if excluded else [error.messages[0], *error.messages])) from error
        if plan.skipped:
            raise Impossible(next(iter(plan.skipped.values())))
        return self._to_the_end(plan.runs[0]) if whole else plan.runs[0]

    def _to_the_end(self, spec: RunSpec) -> RunSpec:
        """Return a run that trains for all of `work`, warm-up included."""
        if spec.global_batch_size is None:
            raise Impossible("the loss after so many samples needs a batch that is known beforehand")
        steps = round((self.search.work.samples or 0) / spec.global_batch_size) - spec.warmup_steps
        if steps < 1:
            raise Impossible(f"work is fewer than {spec.warmup_steps + 1} steps of {spec.global_batch_size} samples")
        return spec.model_copy(update={"measure_steps": steps})

    def identity(self) -> dict[str, Any]:
        """Return what two studies must share to be one: all but the budget and how it is searched."""
        beside = {"description", "budget", "sampler", "seed", "idle_seconds"}
        return self.search.model_dump(mode="json", exclude=beside)

    @cached_property
    def quality(self) -> bool:
        """Whether what counts depends on how long is trained."""
        return self.search.trains_to_the_end or self.search.work.target

    def key(self, told: Mapping[str, Any]) -> Key:
        """Return what makes a configuration, of `bench.metrics.parameters` or those columns of a row: equal for equal ones.

        How long is measured does not count, unless quality does.
        """
        beside = _BESIDE - ({"measure_steps", "warmup_steps", "warmup_seconds"} if self.quality else set())
        return frozenset(
            (name, f"{value:.12g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value))
            for name, value in told.items()
            if name not in beside and not pd.isna(value) and (self.quality or not name.startswith("validation."))
        )

    @cached_property
    def possible(self) -> dict[Key, dict[str, Any]] | None:
        """Parameters of all configurations that this machine can run, by their key; None where they cannot be listed.

        Raises SuiteError for what is wrong whatever it is combined with.
        """
        if mistakes := list(self._mistakes()):
            raise SuiteError(mistakes)
        listed = self.listed()
        out: dict[Key, dict[str, Any]] = {}
        for params in listed or []:
            try:
                out.setdefault(self.key(parameters(self.spec(params))), params)
            except Impossible as error:
                self.refused[str(error)] += 1
        return None if listed is None else out

    def params(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the parameters of the configuration of the space that a row is of, given what was asked; None if of none."""
        out: dict[str, Any] = {}
        for name, domain in self.fields.items():
            value = row.get(name)
            if not self.active(name, out):
                continue
            if isinstance(domain, Range):
                if not isinstance(value, (int, float)) or not domain.low <= value <= domain.high:
                    return None
                out[name] = int(value) if domain.whole else float(value)
            else:
                fits = [choice for choice in domain.choices if _fits(choice, name, row)]
                if not fits:
                    return None
                out[name] = label(max(fits, key=lambda choice: len(choice) if isinstance(choice, dict) else 0))
        try:
            return out if self.key(parameters(self.spec(out))) == self.key(row) else None
        except Impossible:
            return None


def _fits(choice: Any, name: str, row: Mapping[str, Any]) -> bool:
    """Whether a row has a choice, options and all."""
    options = choice if isinstance(choice, dict) else {"name": choice}
    told = ((row.get(name if option == "name" else f"{name}.{option}"), value) for option, value in options.items())
    return all(pd.isna(found) if value is None else str(found) == str(value) or found == value for found, value in told)
