"""What a search file means on a machine: which configurations there are, and which of them cannot be."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import pandas as pd

from analytics.search.file import LENGTH, MOST_LISTED, Choices, Range, Search, label, values_of
from bench.figures.metrics import parameters
from bench.schema import Machine, RunSpec
from bench.suites.expand import available_devices, expand
from bench.suites.load import SuiteError, for_device_type

EXCLUDED = "left out by exclude"
_BESIDE = {*LENGTH, "meters", "seed", "repeat", "ladder", "launcher"}
_DRAWN = 200
"""So many combinations are looked at where not all can be listed."""

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
        fields = {name: values_of(given) for name, given in written.items()}
        return cls(search, machine, fields, for_device_type(search.probe, device_type))

    def _mistakes(self) -> Iterator[str]:
        """Tell the mistakes that all combinations have, or all of one choice. Which devices there are differs by machine."""
        found: dict[tuple[str, Any], set[str]] = {}
        for params in self.listed() or self.drawn():
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

    def drawn(self) -> Iterator[dict[str, Any]]:
        """Yield some configurations, drawn at random, with numbers at the ends of their ranges."""
        draw = random.Random(0)  # noqa: S311  nothing is kept secret
        for _ in range(_DRAWN):
            params: dict[str, Any] = {}
            for name, domain in self.fields.items():
                if self.active(name, params):
                    values = domain.choices if isinstance(domain, Choices) else (domain.low, domain.high)
                    params[name] = label(draw.choice(values))
            yield params

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
        return spec.changed(measure_steps=steps)

    def identity(self) -> dict[str, Any]:
        """Return what two studies must share to be one: all but the budget and how it is searched."""
        beside = {"description", "budget", "sampler", "seed", "idle_seconds"}
        return self.search.model_dump(mode="json", exclude=beside)

    @cached_property
    def quality(self) -> bool:
        """Whether what counts depends on how long is trained."""
        return self.search.for_quality or self.search.work.target

    def key(self, told: Mapping[str, Any]) -> Key:
        """Return what makes a configuration, of `metrics.parameters` or those columns of a row: equal for equal ones.

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
