"""Runs that start from the trained weights of another run: the fields `saves` and `needs` of a suite.

A giver, which saves the weights, and the runs that need it have the same repeat. The giver runs first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from bench.registry import did_you_mean
from bench.schema import COMMAND, RunSpec


def mistakes(specs: Iterable[RunSpec]) -> Iterator[str]:
    """Yield the mistakes in the names that configurations save and need, each as a message."""
    specs, savers = list(specs), defaultdict(list)
    for spec in specs:
        if spec.saves is not None:
            savers[spec.saves].append(spec)
        if spec.workload == COMMAND and (spec.saves or spec.needs):
            yield f"{spec.label}: a command neither saves weights for other runs nor needs theirs"
        if spec.distillation.name != "none" and spec.needs is None:
            yield f"{spec.label}: distillation has no teacher: give needs: NAME of a run that saves NAME"
    for name, givers in savers.items():
        if len(givers) > 1:
            labels = ", ".join(spec.label for spec in givers[:3])
            yield f"{len(givers)} configurations save {name!r} ({labels}): only one may"
    for spec in specs:
        if spec.needs is not None and spec.needs not in savers:
            hint = did_you_mean(spec.needs, savers) if savers else "no run saves weights"
            yield f"{spec.label} needs {spec.needs!r}, which no run of the suite saves: {hint}"
        elif (cycle := _cycle(spec, savers)) is not None:
            yield f"runs need each other in a cycle: {cycle}; write needs: null where the weights are made"


def _cycle(spec: RunSpec, savers: dict[str, list[RunSpec]]) -> str | None:
    """Return the cycle of names through a configuration, but only for its alphabetically first name; else None."""
    names: list[str] = []
    name = spec.needs
    while name is not None and name in savers and name not in names:
        names.append(name)
        name = savers[name][0].needs
    if spec.saves not in names or spec.saves != min(names):
        return None
    return " -> ".join([*names, names[0]])


def in_order(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs of one repeat with each giver before the runs that need it, otherwise in their order."""
    givers = {spec.saves: spec for spec in specs if spec.saves is not None}
    out: dict[str, RunSpec] = {}

    def put(spec: RunSpec) -> None:
        if spec.config_id in out:
            return
        if spec.needs in givers:
            put(givers[spec.needs])
        out[spec.config_id] = spec

    for spec in specs:
        put(spec)
    return list(out.values())


class Givers:
    """The runs that save weights, by name and repeat, so that finding the giver of a run is one look-up."""

    def __init__(self, runs: Iterable[RunSpec]) -> None:
        self._runs: dict[tuple[str, int], RunSpec] = {}
        for run in runs:
            if run.saves is not None:
                self._runs.setdefault((run.saves, run.repeat), run)

    def of(self, spec: RunSpec) -> RunSpec | None:
        """Return the run whose weights a run needs; None if it needs none, or if no run saves them."""
        return None if spec.needs is None else self._runs.get((spec.needs, spec.repeat))


def with_givers(chosen: Iterable[RunSpec], runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the chosen runs and all runs that they need, directly or not, in the order of `runs`."""
    keep, givers = set[str](), Givers(runs)
    for run in chosen:
        needed: RunSpec | None = run
        while needed is not None and needed.run_id not in keep:
            keep.add(needed.run_id)
            needed = givers.of(needed)
    return [run for run in runs if run.run_id in keep]


def pass_on(specs: Sequence[RunSpec], skipped: dict[str, str]) -> dict[str, str]:
    """Add the configurations that need a skipped one to `skipped`, which maps a config_id to the reason."""
    if not skipped:
        return {}
    out, givers = dict(skipped), Givers(specs)
    for spec in in_order(specs):
        needed = givers.of(spec)
        if needed is not None and needed.config_id in out:
            out.setdefault(spec.config_id, f"needs {spec.needs!r}, which is skipped: {out[needed.config_id]}")
    return out
