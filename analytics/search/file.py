"""The search file: what may vary, what counts, and until when. Its mistakes are told at once.

name: cost-efficiency
defaults: {workload: decoder_lm, ...}              # fields of a run, as in a suite
space:
precision: [fp32, bf16]                          # choices
batch_size_per_device: {low: 1, high: 64, log: true}
parallelism: [ddp, tp]
parallelism.size: {choices: [2, 4], when: {parallelism: tp}}
objectives: [time, {minimize: own.val_bpb}]        # for `work`: {samples: ...}, {tokens: ...} or target
constraints: {memory: {max: 2.0e+9}}
budget: {trials: 30, minutes: 8}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from analytics.judge.objectives import NAMES, OWN, Amount, Goal, Name
from bench.registry import did_you_mean
from bench.schema import COMMAND, Choice, Count, Model, Positive, Scalar, Site, Slug, Suite, with_words
from bench.suites import yaml as yamlfile
from bench.suites.load import FIELDS, SuiteError, branches, messages

OBJECTIVES = {name: "maximize" if name == "accuracy" else "minimize" for name in NAMES}
"""What a search can go for, and the way that is better. Of the user's own metrics (`own.NAME`) the file says it."""
_WAYS = {"minimise": "minimize", "maximise": "maximize", "minimize": "minimize", "maximize": "maximize"}
QUALITY = ("loss", "accuracy")
MOST_LISTED = 20_000
"""Spaces with at most so many configurations are listed, so that it is known when all were tried."""
LENGTH = ("measure_steps", "measure_seconds", "warmup_steps", "warmup_seconds", "timeout_seconds")
"""Fields that say how long is measured, not what: runs that differ in them alone tell of one configuration."""
_NOT_SEARCHED = {"saves", "needs", "seed", "meters", "validation", "target", *LENGTH}


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


def _goals(entry: str | dict[str, Any]) -> list[tuple[str, Any]]:
    """Return objectives with their directions: of `time`, `{own.x: maximize}` or `{maximize: own.x}`."""
    if isinstance(entry, str):
        return [(entry, OBJECTIVES.get(entry))]
    out: list[tuple[str, Any]] = []
    for key, value in entry.items():
        listed = value if isinstance(value, list) else [value]
        out += [(str(name), key) for name in listed] if key in _WAYS else [(str(key), value)]
    return out


class Search(Site):
    """A search file, as written. `defaults` and `exclude` are those of a suite, `space` maps fields of a run to values.

    Every trial is measured by one run (shortened by the fields in `probe`); one that is on or near the front so far
    gets `repeats` runs as long as the defaults say.
    """

    name: Slug
    description: Annotated[str, Field(max_length=2000)] = ""
    words: dict[str, dict[str, list[str]]] = {}
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
        entries = [value] if isinstance(value, (str, dict)) else value
        if not isinstance(entries, (list, tuple)) or any(
            not isinstance(e, (str, dict)) or "direction" in e for e in entries
        ):
            return value
        pairs = [pair for entry in entries for pair in _goals(entry)]
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"an objective stands twice in {', '.join(names)}")
        if not 1 <= len(names) <= 4:
            raise ValueError(f"give one to four of {', '.join(OBJECTIVES)}, not {len(names)}")
        for name, direction in pairs:
            if name.startswith(OWN) and direction not in _WAYS:
                raise ValueError(f"{name}: say which way is better: {{minimize: {name}}} or {{maximize: {name}}}")
            if not name.startswith(OWN) and name not in OBJECTIVES:
                raise ValueError(f"no objective {name!r}: {did_you_mean(name, OBJECTIVES)}, or own.NAME")
            if name in OBJECTIVES and _WAYS.get(str(direction)) != OBJECTIVES[name]:
                raise ValueError(f"{name}: {OBJECTIVES[name]}, not {direction!r}")
        return tuple({"name": name, "direction": _WAYS[str(direction)]} for name, direction in pairs)

    @model_validator(mode="before")
    @classmethod
    def _maps_are_words(cls, value: Any) -> Any:
        return with_words(value, "space")

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
        """Whether each run trains for all of `work`, since what counts is how good the model is then.

        A command of the user decides on its length itself.
        """
        return self.for_quality and not self.work.target and self.defaults.get("workload") != COMMAND

    @property
    def for_quality(self) -> bool:
        """Whether it counts how good the model is, so that runs of unequal length are not compared."""
        return any(name in QUALITY or name.startswith(OWN) for name in self.judged)

    def suite(self, name: str | None = None, **fields: Any) -> Suite:
        """Return a suite at the same place and prices, with the same defaults."""
        kept = ("description", "defaults", "words", "idle_seconds", *Site.model_fields)
        shared = {key: getattr(self, key) for key in kept}
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


def values_of(given: Any) -> Choices | Range:
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
                domain = values_of(branch)
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
    if search.defaults.get("workload") == COMMAND and "accuracy" in search.judged:
        yield "the accuracy of a command is one of its own metrics: {maximize: own.accuracy}"
    if search.defaults.get("workload") != COMMAND and any(name.startswith(OWN) for name in search.judged):
        yield "own metrics are those of the workload command: use loss or accuracy"
    if search.work.target and not any(name.partition(".")[0] == "target" for name in asked):
        yield "work: target needs defaults with target: {metric: ..., value: ...}, and validation: {every_steps: ...}"
    if search.trains_to_the_end and {"measure_steps", "measure_seconds"} & asked:
        yield "loss and accuracy are those after `work`: leave measure_steps and measure_seconds out of the defaults"
    if search.trains_to_the_end and search.work.samples is None:
        yield "loss and accuracy are those after `work`, which is counted in samples here: work: {samples: NUMBER}"
    if search.probe and (search.work.target or search.for_quality):
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
