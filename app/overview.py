"""What the Overview tells: how far what runs now is, a row a suite, and what did not end well by reason."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analytics.advice import Case, listed
from analytics.frame import latest_execution
from analytics.stats import Estimate, geometric_mean
from analytics.symptoms import too_large
from analytics.words import between, printable
from bench.record import Status
from bench.store.progress import Flight, Seen

_NUMBERS = r"0x[0-9a-fA-F]+|\d+(?:[.,]\d+)*"
"""What differs between messages that say the same."""
_COSTS = ("rental", "owned")
_REMEDIES = {
    Status.OUT_OF_MEMORY: "Try half the batch, precision bf16 or memory recompute.",
    Status.TIMEOUT: "Give it more time (timeout_seconds), or read at the end of its worker.log where it was at the limit.",
    Status.INVALID: "Its figures cannot be right, so none is kept: is the learning rate too high, or the precision too low?",
    Status.FAILED: "Its worker.log, in the folder of the run, says more. Mend that, then give the same command with --retry.",
}


def duration(seconds: float) -> str:
    """Say how long that is: `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    for size, name, part, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {rest}"
    return f"{whole} s"


def _progress(flight: Flight) -> str:
    of = "" if flight.to_do is None else f" of {flight.to_do}"
    return f"{flight.done}{of} {flight.unit} done"


def told(flight: Flight, now: datetime) -> list[str]:
    """Say what runs, how far it is, which run is under way, and how much is left as was reckoned when that began."""
    failed = f", {flight.failed} run{'s' * (flight.failed != 1)} failed" if flight.failed else ""
    since = (now - (flight.run_began_at or now)).total_seconds()
    what = "starting" if flight.current is None else f"{printable(flight.current, 200)}, for {duration(since)}"
    times = f"Began {duration((now - flight.began_at).total_seconds())} ago"
    if flight.remaining_seconds is not None:
        left = flight.remaining_seconds - since
        times += f", about {duration(left)} left" if left > 0 else ", about to end"
    head = f"{printable(flight.suite)} on {printable(flight.host)}: {_progress(flight)}{failed}"
    return [head, f"Now: {what}", times]


def past(seen: Seen) -> str:
    """Say that an execution stopped before its end, or was not heard of for longer than it should."""
    flight = seen.flight
    head, when = f"{printable(flight.suite)} on {printable(flight.host)}", f"{flight.updated_at:%Y-%m-%d %H:%M:%S} UTC"
    if seen.state == "silent":
        return f"{head}: no news since {when}, when it had {_progress(flight)}. Whether it still runs is not known."
    return f"{head} stopped before its end, last heard of {when}: {_progress(flight)}. The same command goes on."


_SHOWN = [
    "suite",
    "execution",
    "started_at",
    "status",
    "config_id",
    "label",
    "host",
    "device_name",
    "samples_per_second",
]
_SHOWN += [
    "run_energy_joules",
    "run_energy_joules_estimated",
    "emissions_kg",
    "emissions_basis",
    "cost_usd",
    "cost_basis",
]


def suites(df: pd.DataFrame) -> pd.DataFrame:
    """Return a row a suite, what ran last first: figures of its newest execution alone. What is not known is absent.

    Energies [J], CO2e [g] and costs [USD] are sums over whole runs, measured and estimated ones apart.
    """
    executions = df.groupby("suite", dropna=False)["execution"].nunique()
    runs = latest_execution(df[_SHOWN])
    grams, basis, usd = 1000 * runs["emissions_kg"], runs["emissions_basis"], runs["cost_usd"]
    took = {"joules": runs["run_energy_joules"], "joules_estimated": runs["run_energy_joules_estimated"]}
    took |= {"grams": grams.where(basis == "measured"), "grams_estimated": grams.where(basis == "estimated")}
    took["usd"], took["usd_owned"] = (usd.where(runs["cost_basis"].str.startswith(b, na=False)) for b in _COSTS)
    sums = pd.DataFrame(took).groupby(runs["suite"], sort=False, dropna=False).sum(min_count=1).to_dict("records")
    rows = []
    for (suite, own), added in zip(runs.groupby("suite", sort=False, dropna=False), sums, strict=True):
        counts = own["status"].value_counts()
        order = sorted(counts.index, key=lambda status: (status != Status.OK, status == Status.SKIPPED, status))
        ended = ", ".join(f"{counts[status]} {printable(status).replace('_', ' ')}" for status in order)
        host, devices = (listed(sorted(own[name].dropna().unique())) for name in ("host", "device_name"))
        about: dict[Any, Any] = {"suite": suite, "began": own["started_at"].min(), "runs": ended}
        where = {"host": host, "devices": devices, "executions": int(executions[suite])}
        rows.append(about | _fastest(own) | added | where)
    return pd.DataFrame(rows).sort_values("began", ascending=False, kind="stable", ignore_index=True)


def _fastest(runs: pd.DataFrame) -> dict[str, str | None]:
    """Return samples/s of the configuration with most, as a geometric mean with its 95 % interval, and its name."""
    known = runs[(runs["status"] == Status.OK) & (runs["samples_per_second"] > 0)]
    if known.empty:
        return {"best": None, "fastest": None}
    means = np.log(known["samples_per_second"]).groupby(known["config_id"], dropna=False).transform("mean")
    best = known[means == means.max()]
    mean = _mean(tuple(best["samples_per_second"]))
    low, high = (mean.low, mean.high) if len(best) > 2 else (None, None)  # that of two says nothing
    return {"best": between(mean.value, low, high), "fastest": str(best["label"].iloc[0])}


@lru_cache(512)
def _mean(rates: tuple[float, ...]) -> Estimate:
    """Return the mean of repeats, the same for every look at the page: of many, its interval takes a while."""
    return geometric_mean(rates)


def reasons(df: pd.DataFrame, *, skipped: bool = False) -> pd.DataFrame:
    """Return why runs failed, or were skipped, in the words of the newest, and what to do where that is known.

    A row is a reason, the newest first; those that differ in numbers only are one.
    """
    lost = df[df["status"] == Status.SKIPPED] if skipped else df[~df["status"].isin([Status.OK, Status.SKIPPED])]
    alike = lost["error_message"].fillna("").str.split("\n").str[0].str.replace(_NUMBERS, "#", regex=True)
    found = []
    for _, same in lost.groupby([lost["status"], lost["error_type"], alike], dropna=False, sort=False):
        last = same.iloc[-1]
        kind = "" if skipped or pd.isna(last["error_type"]) else f"{printable(last['error_type'])}: "
        why = "no reason is known" if pd.isna(last["error_message"]) else printable(last["error_message"], 400)
        names = {c: [printable(name, 80) for name in same[c].dropna().unique()] for c in ("label", "suite")}
        told = {"outcome": printable(last["status"]).replace("_", " "), "reason": kind + why, "runs": len(same)}
        told |= {"configurations": listed(names["label"]), "suites": listed(names["suite"])}
        found.append({**told, "newest": last["started_at"], "remedy": "" if skipped else _remedy(df, same)})
    table = pd.DataFrame(found)
    return table if table.empty else table.sort_values("newest", ascending=False, kind="stable", ignore_index=True)


def _remedy(df: pd.DataFrame, same: pd.DataFrame) -> str:
    """Say what to do: out of memory also what is nearest of that which fitted in the same execution."""
    last = same.iloc[-1]
    if last["status"] == Status.OUT_OF_MEMORY:
        there = df[(df["suite"] == last["suite"]) & (df["execution"] == last["execution"])]
        case = Case(same.loc[[last.name]], there[there["status"] == Status.OK], same[:0], (), frozenset())
        for advice in too_large(case):
            return advice.sentence
    return _REMEDIES.get(last["status"], "")


def lines(reason: Any, *, short: bool = False) -> list[str]:
    """Say a row of `reasons`: in a line, or with where and when it was, and what to do."""
    many = f"{reason.runs} run{'s' * (reason.runs != 1)}"
    if short:
        return [f"{many} ({reason.suites}): {reason.reason}"]
    when = "" if pd.isna(reason.newest) else f", the newest {reason.newest:%Y-%m-%d %H:%M:%S} UTC"
    out = [f"{reason.outcome}: {many}{when}", reason.reason, f"In: {reason.configurations} ({reason.suites})"]
    return [*out, f"What to do: {reason.remedy}"] if reason.remedy else out
