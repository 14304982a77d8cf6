"""What runs tell of themselves: waiting for data or for a slow rank, heat, memory to spare or none, failures, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from analytics.judge import stats
from analytics.judge.advice import Advice, Case, Evidence, weighed
from analytics.judge.gains import differs, undecided
from analytics.judge.matched import FOLLOW, Change, flagged, plain
from analytics.judge.stats import LOSS, SAME
from analytics.runs.frame import measured_commands, of_tables, varied
from analytics.text import printable
from bench.figures.flags import STRAGGLER_RATIO
from bench.record import Status
from bench.schema import COMMAND

WAITS = 0.1
"""Share of a step from which on waiting is worth a sentence."""
MANY = 20
"""More repeats than this, beyond those made, are no advice."""
_EXPOSED = "exposed_communication_share"


def _evidence(runs: pd.DataFrame, measure: str) -> Evidence:
    """Evidence of runs: of a figure the median and range of the configuration where it is largest."""
    configurations = tuple(runs["config_id"].dropna().unique())
    if measure not in runs or runs[measure].isna().all():
        return Evidence(len(runs), configurations, measure, n=len(runs))
    worst = runs[runs["config_id"] == runs.groupby("config_id")[measure].median().idxmax()][measure]
    middle, least, most = (float(value) for value in (worst.median(), worst.min(), worst.max()))
    return Evidence(len(runs), configurations, measure, middle, least, most, len(worst))


def _always(case: Case, column: str, above: float, but: str = "") -> tuple[pd.DataFrame, Evidence, float]:
    """Return the runs of configurations of which every run has more than `above` of a figure, and its median.

    The parallelism `but` is left out.
    """
    among = case.ok[case.ok["parallelism"] != but] if column in case.ok else case.ok[:0]
    runs = among[among.groupby("config_id")[column].transform("min") > above] if len(among) else among
    evidence = _evidence(runs, column)
    return runs, evidence, evidence.ratio or 0.0


def disturbed(case: Case) -> Iterator[Advice]:
    """Heat, and others on the GPU: figures that are not the training's own."""
    for flag, measure in {"throttled": "throttled_share", "shared_gpu": "shared_gpu"}.items():
        runs = case.ok[flagged(case.ok, flag)]
        if len(runs):
            yield Advice(flag.removesuffix("_gpu"), _evidence(runs, measure), limits=("excluded",), first=True)


def unlike(case: Case) -> Iterator[Advice]:
    """Commands that did not use the devices, or the precision, that they were asked to use."""
    runs = case.ok[flagged(case.ok, "devices_differ", "precision_differs")]
    if len(runs):
        yield Advice("unlike", _evidence(runs, "runs unlike the suite"), first=True)


def waiting(case: Case) -> Iterator[Advice]:
    """The devices wait for data."""
    runs, evidence, share = _always(case, "data_wait_share", WAITS)
    if len(runs):
        workers = runs.get("workload_args.workers", pd.Series([0.0])).fillna(0).max()
        gpu = bool(runs["device_type"].eq("gpu").any())
        action = f"workload_args.workers: {max(2, 2 * int(workers))}" + ", workload_args.pin_memory: true" * gpu
        limits = ("at_best",) if gpu else ("at_best", "cpu_loaders")
        yield weighed(Advice("input", evidence, action, share, limits), runs)


def straggling(case: Case) -> Iterator[Advice]:
    """One rank is slower than the others, who wait for it. Stages of a pipeline differ by nature."""
    runs, evidence, ratio = _always(case, "straggler_ratio", STRAGGLER_RATIO, but="pp")
    if runs.empty or "straggler_rank" not in runs or runs["straggler_rank"].isna().any():
        return
    ranks = {int(rank) for rank in runs["straggler_rank"]}
    if len(ranks) > 1 or float(runs["devices"].min()) ** (1 - len(runs)) > 0.05:
        return  # chance may pick the same one each time
    devices = ", ".join(sorted(runs["straggler_device"].dropna().unique())) or "unknown device"
    facts = {"rank": ranks.pop(), "device": printable(devices, 100)}
    yield weighed(Advice("straggler", evidence, saving=1 - 1 / ratio, limits=("at_best",), facts=facts), runs)


def straggling_node(case: Case) -> Iterator[Advice]:
    """One node is slower than the others in most of the runs that it took part in."""
    if "straggler_node_ratio" not in case.ok:
        return
    among = case.ok[case.ok["straggler_node_ratio"].notna() & case.ok["straggler_node_name"].notna()]
    for name, slow in among[among["straggler_node_ratio"] > STRAGGLER_RATIO].groupby("straggler_node_name"):
        took = among[[pd.isna(names) or name in names.split() for names in among["node_names"]]]
        if 2 * len(slow) <= len(took):
            continue
        evidence, ratio = _evidence(slow, "straggler_node_ratio"), float(slow["straggler_node_ratio"].median())
        nodes = int(slow["num_nodes"].min())
        facts = {"node": printable(str(name), 100), "took": len(took), "nodes": nodes}
        advice = Advice("straggler node", evidence, saving=1 - 1 / ratio, limits=("at_best",), facts=facts)
        if float(nodes) ** (1 - len(slow)) > 0.05:  # chance may pick the same one each time
            advice = replace(advice, saving=None, limits=("few_runs",), weak=True)
        yield weighed(advice, slow)


def communicating(case: Case) -> Iterator[Advice]:
    """Ranks wait for the network or for each other; another parallelism that was measured may be faster."""
    runs, evidence, share = _always(case, _EXPOSED, WAITS)
    if runs.empty:
        return
    faster = [fast for change in case.changes if (fast := _faster(change, runs)) is not None]
    waits = [(float(fast[_EXPOSED].median()), fast) for fast in faster if fast[_EXPOSED].max() < share / 2]
    if not waits:
        yield weighed(Advice("communication", evidence, limits=("untested", "profiled")), runs)
        return
    least, fast = min(waits, key=lambda one: one[0])
    way = printable(fast["parallelism"].iloc[0], 40)
    facts, evidence = {"parallelism": way, "share": least}, replace(evidence, n=min(evidence.n, len(fast)))
    limits, claim = ("profiled",), "other parallelism"
    advice = Advice("communication", evidence, f"parallelism: {way}", limits=limits, claim=claim, facts=facts)
    yield weighed(advice, pd.concat([runs, fast]))


def _faster(change: Change, waiting: pd.DataFrame) -> pd.DataFrame | None:
    """The runs of another parallelism that beat those that wait, where a change has measured that."""
    ratio = differs(change, change.main)
    if change.topic.name != "parallelism" or 1 - SAME <= ratio <= 1 + SAME:
        return None
    fast, slow = change.runs if ratio < 1 else change.runs[::-1]
    return fast if _EXPOSED in fast and slow["config_id"].isin(waiting["config_id"]).all() else None


def spare(case: Case) -> Iterator[Advice]:
    """Less than half of the memory is used, and no other batch was tried."""
    columns = ["peak_memory_bytes", "memory_available_bytes"]
    known = case.ok.reindex(columns=[*case.ok, *{*columns}.difference(case.ok)]).dropna(subset=columns[1:])
    share = known[columns[0]] / known[columns[1]]
    if share.max() < 0.5 and not any(change.topic.name == "batch" for change in case.changes):
        fullest = known[share == share.max()].iloc[0]
        facts = {column: float(fullest[column]) for column in columns}
        limits = ("untested", "fewer_updates")
        action = "batch_size_per_device: max" + ", memory: none" * bool(set(known["memory"].dropna()) - {"none"})
        yield Advice("memory to spare", _evidence(known, columns[0]), action, limits=limits, facts=facts)


def too_large(case: Case) -> Iterator[Advice]:
    """Configurations that did not fit into the memory, and the nearest that did: of several that with most samples."""
    columns = [c for c in varied(case.df) if c not in FOLLOW]
    lost = case.df[case.df["status"] == Status.OUT_OF_MEMORY]
    for config, runs in list(lost.groupby("config_id", sort=False))[:2]:
        row, action = runs.iloc[-1], "memory: recompute"
        here = case.ok[case.ok["workload"] == row["workload"]].sort_values("global_batch_size", ascending=False)
        if len(here):
            differ = here[columns].astype("str").fillna("") != row[columns].astype("str").fillna("")
            near = differ.loc[differ.sum(axis=1).sort_values(kind="stable").index[0]]
            other = here.loc[near.name]
            action = ", ".join(f"{c}: {plain(other[c])}" for c in columns if near[c] and pd.notna(other[c]))
        evidence = Evidence(len(runs), (str(config),), "runs out of memory", n=len(runs))
        yield Advice("out of memory", evidence, action)


def failing(case: Case) -> Iterator[Advice]:
    """Runs that failed for other reasons; those that this machine cannot do count only where nothing else ran."""
    bad = [Status.FAILED, Status.TIMEOUT, Status.INVALID, *([Status.SKIPPED] if case.ok.empty else [])]
    lost = case.df[case.df["status"].isin(bad)]
    if len(lost) and not of_tables(lost).all():
        topic = "skipped" if (lost["status"] == Status.SKIPPED).all() else "failures"
        topic = "failed command" if topic == "failures" and measured_commands(lost) else topic
        facts = {"message": printable(lost.iloc[-1]["error_message"], 160)}
        yield Advice(topic, replace(_evidence(lost, "failed runs"), n=len(lost)), facts=facts)


def uncertain(case: Case) -> Iterator[Advice]:
    """Comparisons that the repeats do not decide, and how many would."""
    waiting = {change: (_open(change),) for change in case.changes if undecided(change)}
    if not waiting:
        return
    configurations = dict.fromkeys(config for change in waiting for pair in change.pairs for config in pair)
    sides = [case.changes.judge.sides[config].runs for config in configurations]
    first = next(iter(waiting))
    metric = first.metric(first.main) or ""
    noise, degrees = stats.pooled(runs[metric] for runs in sides if metric in runs)
    fewest = min(map(len, sides))
    evidence = Evidence(sum(map(len, sides)), tuple(configurations), "spread of repeats", noise, n=fewest)
    more = [change.more_repeats(measure) or 0 for change, (measure,) in waiting.items()]
    few = max((count for count in more if count <= MANY), default=None)
    action = _longer(case) if few is None else _repeats(case, max(3, fewest + few), fewest)
    if not degrees:
        evidence, action = replace(evidence, measure="one repeat each", ratio=None), _repeats(case, 3)
    claim = "measure longer" * (degrees > 0 and few is None)
    claim, action = ("more rows", "") if of_tables(case.ok).all() else (claim, action)
    yield Advice("repeats", evidence, action, changes=waiting, claim=claim)


def _open(change: Change) -> str:
    """The measure of an undecided change: of more devices first whether they are faster, then whether they pay."""
    return "time" if change.topic.name == "devices" and change.verdict("time") == "cannot tell" else change.main


def _repeats(case: Case, count: int, made: int = 1) -> str:
    """So many repeats, as a suite says it; `bench measure` adds to those that were made."""
    return f"--repeats {count - made}" if measured_commands(case.ok) else f"repeats: {count}"


def _longer(case: Case) -> str:
    """A window five times as long, as a suite or `bench measure` says it; nothing of runs that do not tell theirs.

    A command that ended by itself can only be longer itself.
    """
    steps, seconds = case.ok["measure_steps"].median(), case.ok["window_seconds"].median()
    if case.ok["workload"].eq(COMMAND).all() and case.ok[["measure_steps", "measure_seconds"]].isna().all(axis=None):
        return ""
    if measured_commands(case.ok):
        longer = "" if pd.isna(seconds) else f"--seconds {math.ceil(5 * seconds)}"
        return longer if pd.isna(steps) else f"--steps {5 * int(steps)}"
    longer = "" if pd.isna(seconds) else f"measure_seconds: {math.ceil(5 * seconds)}"
    return longer if pd.isna(steps) else f"measure_steps: {5 * int(steps)}"


def unsteady(case: Case) -> Iterator[Advice]:
    """Windows that were short or unsteady, on a machine that others used: in half of the runs or more."""
    runs = case.ok[flagged(case.ok, "not_steady", "noisy_host", "window_too_short", "steady_unknown")]
    if len(runs) and 2 * len(runs) >= len(case.ok):
        yield Advice("steadiness", _evidence(runs, "unsteady runs"), _longer(case))


def starting(case: Case) -> Iterator[Advice]:
    """Starting up takes longer than what was measured: how long a training must be for it not to matter."""
    late = case.ok["startup_seconds"] > case.ok["window_seconds"]
    runs = case.ok[late.groupby(case.ok["config_id"]).transform("all")]
    if len(runs):
        evidence = _evidence(runs, "startup_seconds")
        yield Advice("start-up", evidence, facts={"seconds": (evidence.ratio or 0.0) / LOSS})


def nothing_compared(case: Case) -> Iterator[Advice]:
    """What to run where no two configurations can be compared."""
    if measured_commands(case.ok) and case.ok["config_id"].nunique() == 1:
        return  # one measurement has nothing to vary
    if len(case.ok) and not case.changes and not of_tables(case.ok).all():
        command = case.ok["workload"].eq(COMMAND).all()  # what it can vary is not known here
        action = _repeats(case, 3) if command else "matrix: {precision: [fp32, bf16]}, repeats: 3"
        yield Advice("next", _evidence(case.ok, "configurations"), action)


BEFORE = (disturbed, unlike, too_large, failing)
AFTER = (waiting, straggling_node, straggling, communicating, spare, nothing_compared, uncertain, unsteady, starting)
"""Rules in the order in which they count where nothing is known to be saved, before and after those of `gains`."""
