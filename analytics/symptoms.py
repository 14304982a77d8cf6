"""What runs tell of themselves: waiting for data or for a slow rank, heat, memory to spare or none, failures, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analytics import stats
from analytics.advice import Advice, Case, Evidence, listed
from analytics.frame import asked
from analytics.matched import Change
from analytics.stats import LOSS
from analytics.words import printable
from bench.quality import STRAGGLER_RATIO
from bench.record import Status

UNFIT = ("throttled", "shared_gpu", "mig_shared")
"""Flags of runs that something outside slowed down: no advice compares them."""
WAITS = 0.1
"""Share of a step from which on waiting is worth a sentence."""
ENOUGH = 0.05
"""Differences that repeats should be able to tell."""
MANY = 50
"""More repeats than this are no advice."""


def flagged(df: pd.DataFrame, *flags: str) -> pd.Series:
    """Return for each run whether it has one of some flags."""
    return df["flags"].fillna("").map(lambda text: not {*text.split()}.isdisjoint(flags)).astype(bool)


def _share(case: Case, runs: pd.DataFrame, column: str) -> Evidence:
    """Evidence of a figure of runs: the median and range of the configuration where it is largest."""
    worst = runs[runs["config_id"] == runs.groupby("config_id")[column].median().idxmax()][column]
    names = case.names(runs["config_id"])
    middle, least, most = (float(value) for value in (worst.median(), worst.min(), worst.max()))
    return Evidence(len(runs), names, column, middle, least, most, len(worst))


def _always(case: Case, column: str, above: float) -> pd.DataFrame:
    """Return the runs of configurations of which every run has more than `above` of a figure."""
    if column not in case.ok:
        return case.ok.iloc[:0]
    least = case.ok.groupby("config_id")[column].transform("min")
    return case.ok[case.ok[column].notna() & (least > above)]


def disturbed(case: Case) -> Iterator[Advice]:
    """Heat, and others on the GPU: figures that are not the training's own."""
    causes = {
        "throttled": (
            "heat or a power brake slowed the GPU down",
            "improve its cooling, raise its power limit or wait until it is cool",
        ),
        "shared_gpu": ("other processes used the GPU", "choose free ones with --gpus, or wait for them to end"),
    }
    for flag, (what, remedy) in causes.items():
        runs = case.ok[flagged(case.ok, flag)]
        if len(runs):
            share = runs["throttled_share"].max() if flag == "throttled" and "throttled_share" in runs else math.nan
            during = "" if math.isnan(share) else f", for up to {share:.0%} of the time"
            again = "Their times cannot be compared with others and are left out here"
            text = f"In {len(runs)} of {len(case.ok)} runs {what}{during}. {again}: {remedy}, then run again."
            ratio = None if math.isnan(share) else float(share)
            evidence = Evidence(
                len(runs), case.names(runs["config_id"]), f"share of the window {flag}", ratio, n=len(runs)
            )
            yield Advice(flag.removesuffix("_gpu"), text, evidence, first=True)


def waiting(case: Case) -> Iterator[Advice]:
    """The devices wait for data."""
    runs = _always(case, "data_wait_share", WAITS)
    if len(runs):
        evidence = _share(case, runs, "data_wait_share")
        workers = runs.get("workload_args.workers", pd.Series(dtype=float)).max()
        wanted = 2 if math.isnan(workers) or workers < 1 else int(2 * workers)
        gpu = runs["device_type"].eq("cuda").any()
        action = f"workload_args.workers: {wanted}" + (", workload_args.pin_memory: true" if gpu else "")
        text = f"The training waits for its data {_percent(evidence)} of the time: load them in more processes."
        limits = () if gpu else ("on a CPU the loaders take processors from the training: look whether it gains",)
        yield Advice("input", text, evidence, action, evidence.ratio, ("at best all of the waiting goes", *limits))


def straggling(case: Case) -> Iterator[Advice]:
    """One rank is slower than the others, who wait for it. Stages of a pipeline differ by nature."""
    runs = _always(case, "straggler_ratio", STRAGGLER_RATIO)
    runs = runs[runs["parallelism"] != "pp"]
    if runs.empty:
        return
    evidence = _share(case, runs, "straggler_ratio")
    assert evidence.ratio is not None  # noqa: S101
    text = f"One rank takes {evidence.ratio:.2g} times as long as the others, who wait for it"
    if "straggler_rank" in runs and runs["straggler_rank"].notna().all():
        ranks = sorted({int(rank) for rank in runs["straggler_rank"]})
        devices = sorted(set(runs["straggler_device"].dropna())) if "straggler_device" in runs else []
        which = f" ({printable(devices[0], 50)})" if len(devices) == 1 else ""
        one = f"it is rank {ranks[0]}{which} in all {len(runs)} runs: look at its clocks, its heat and its neighbours"
        other = f"in {len(runs)} runs it was not always the same one: look for other work on the machine"
        text += f"; {one if len(ranks) == 1 else other}"
    yield Advice("straggler", text + ".", evidence, saving=1 - 1 / evidence.ratio, limits=("the saving is at best",))


def communicating(case: Case) -> Iterator[Advice]:
    """Ranks wait for the network or for each other; another parallelism on as many devices may wait less."""
    runs = _always(case, "exposed_communication_share", WAITS)
    if runs.empty:
        return
    evidence = _share(case, runs, "exposed_communication_share")
    assert evidence.ratio is not None  # noqa: S101
    others = case.ok[~case.ok["config_id"].isin(runs["config_id"]) & case.ok["devices"].isin(runs["devices"])]
    waits = others.groupby("parallelism")["exposed_communication_share"].median().dropna()
    text = f"With {listed(evidence.configurations, 2)} the devices wait for each other up to {_percent(evidence)} of a step: "
    limits: tuple[str, ...] = ("at best all of the waiting goes", "from a few profiled steps after the window")
    if len(waits) and waits.min() < evidence.ratio / 2:
        way = str(waits.idxmin())
        text += f"{way} waits {waits.min():.0%}; choose it unless the model does not fit."
        yield Advice("communication", text, evidence, f"parallelism: {way}", None, limits[1:])
        return
    text += "try a larger batch a device, or accumulation, so that they exchange less often."
    yield Advice("communication", text, evidence, "gradient_accumulation_steps: 4", evidence.ratio, limits)


def spare(case: Case) -> Iterator[Advice]:
    """Less than half of the memory is used, and no other batch was tried."""
    if "memory_available_bytes" not in case.ok or any(change.topic.name == "batch" for change in case.changes):
        return
    share = case.ok["peak_memory_bytes"] / case.ok["memory_available_bytes"]
    if share.notna().any() and share.max() < 0.5:
        top = case.ok.loc[share.sort_values().dropna().index[-1]]
        used, there = (f"{top[c] / 1e9:.3g}" for c in ("peak_memory_bytes", "memory_available_bytes"))
        known = case.ok[share.notna()]
        saved = sorted({str(name) for name in known["memory"].dropna()} - {"none"})
        also = f", and without memory: {' or '.join(saved)}" if saved else ""
        text = f"Memory is to spare: {used} of {there} GB at most. Try a larger batch, which may be faster{also}."
        evidence = Evidence(
            len(known), case.names(known["config_id"]), "memory share", float(share.max()), n=len(known)
        )
        limits = ("not measured: a thing to try", "a larger batch makes fewer updates from the same samples")
        yield Advice("memory to spare", text, evidence, "batch_size_per_device: max", limits=limits)


def _nearest(case: Case, row: pd.Series) -> pd.Series | None:
    """The configuration that ran and differs least from one that did not fit; of several that with most samples."""
    if case.ok.empty:
        return None
    columns = [c for c in asked(case.df) if c not in ("global_batch_size", "devices_per_node")]
    here = case.ok[case.ok["workload"] == row["workload"]].drop_duplicates("config_id")
    differ = (here[columns].astype("str").fillna("") != row[columns].astype("str").fillna("")).sum(axis=1)
    near = here[differ == differ.min()]
    return None if near.empty else near.sort_values("global_batch_size", na_position="first").iloc[-1]


def too_large(case: Case) -> Iterator[Advice]:
    """Configurations that did not fit into the memory, and the nearest that did."""
    lost = case.df[case.df["status"] == Status.OUT_OF_MEMORY]
    for _, runs in list(lost.groupby("config_id", sort=False))[:2]:
        row = runs.iloc[-1]
        near = _nearest(case, row)
        asked_for = row.get("attempted_bytes", math.nan)
        room = "" if pd.isna(asked_for) else f" (it asked for {asked_for / 1e9:.3g} GB more)"
        text, action = f"{printable(row['label'], 80)} does not fit into the memory{room}", "memory: checkpoint"
        if near is None:
            text += ": try half the batch, precision bf16 or memory checkpoint."
        else:
            columns = [c for c in asked(case.df) if c not in ("global_batch_size", "devices_per_node")]
            differ = [c for c in columns if str(near[c]) != str(row[c]) and pd.notna(near[c])]
            action = ", ".join(f"{c}: {printable(near[c], 40)}" for c in differ)
            text += f"; the nearest that does has {action}."
        names = (printable(row["label"], 80),)
        yield Advice("out of memory", text, Evidence(len(runs), names, "runs out of memory", n=len(runs)), action)


def failing(case: Case) -> Iterator[Advice]:
    """Runs that failed for other reasons; those that this machine cannot do count only where nothing else ran."""
    bad = [Status.FAILED, Status.TIMEOUT, Status.INVALID, *([Status.SKIPPED] if case.ok.empty else [])]
    lost = case.df[case.df["status"].isin(bad)]
    if len(lost):
        row = lost.iloc[-1]
        reason = row["error_message"] if pd.notna(row["error_message"]) else row["status"]
        many = f"{len(lost)} of {len(case.df)} runs did not end well"
        text = (
            f"{many}, the last one ({row['status']}): {printable(reason, 160)}. Mend that, then run again with --retry."
        )
        names = tuple(dict.fromkeys(printable(label, 60) for label in lost["label"]))
        yield Advice("failures", text, Evidence(len(lost), names, "failed runs", n=len(lost)))


def uncertain(case: Case) -> Iterator[Advice]:
    """Comparisons that the repeats do not decide, and how many would."""
    waiting = [change for change in case.changes if _open(case, change)]
    if not waiting:
        return
    names = tuple(f"{change.title} against {change.baseline}" for change in waiting)
    sides = [side for change in waiting for pair in change.pairs(change.main) for side in pair]
    noise, degrees = stats.pooled(sides)
    fewest = min(map(len, sides))
    wanted = _repeats(noise, len(case.changes), fewest) if degrees else 3
    known = f"{fewest} repeats that differ by {100 * noise:.2g} %" if degrees else "each ran once"
    how = f"{wanted} repeats should tell differences of {100 * ENOUGH:.0f} %"
    if wanted > MANY:
        how = f"{MANY} repeats would not do: measure longer, or on a quieter machine"
    text = f"Cannot tell yet ({known}): {listed(names)}; {how}."
    runs = len({index for side in sides for index in side.index})
    evidence = Evidence(runs, names, "spread of repeats", noise if degrees else None, n=fewest)
    yield Advice("repeats", text, evidence, f"repeats: {wanted}" if wanted <= MANY else _longer(case))


def _open(case: Case, change: Change) -> bool:
    """Whether a change may be larger than ENOUGH, but is not told."""
    ratio = change.ratio(change.main)
    if ratio is None or any((change, measure) in case.told for measure in (change.main, "knee")):
        return False
    return ratio.low is None or ratio.high is None or not 1 - ENOUGH <= ratio.low <= ratio.high <= 1 + ENOUGH


def _repeats(noise: float, tests: int, now: int) -> int:
    """Repeats of each side, more than now, whose interval at the level of that many tests is ± ENOUGH wide at most."""
    for count in range(max(3, now + 1), MANY + 1):
        half = stats.t_quantile(2 * count - 2, 1 - 0.05 / tests) * noise * math.sqrt(2 / count)
        if half <= math.log1p(ENOUGH):
            return count
    return MANY + 1


def _longer(case: Case) -> str:
    """A window five times as long, as a suite says it."""
    steps, seconds = case.ok["measure_steps"].median(), case.ok["window_seconds"].median()
    return f"measure_seconds: {math.ceil(5 * seconds)}" if pd.isna(steps) else f"measure_steps: {5 * int(steps)}"


def unsteady(case: Case) -> Iterator[Advice]:
    """Windows that were short or unsteady, on a machine that others used: in half of the runs or more."""
    runs = case.ok[flagged(case.ok, "not_steady", "noisy_host", "window_too_short", "steady_unknown")]
    if len(runs) and 2 * len(runs) >= len(case.ok):
        seconds = case.ok["window_seconds"].median()
        text = (
            f"In {len(runs)} of {len(case.ok)} runs the speed was not steady, or others used the machine (windows of "
            f"{seconds:.2g} s): measure longer and when nothing else runs, before small differences are believed."
        )
        evidence = Evidence(
            len(runs), case.names(runs["config_id"]), "unsteady runs", len(runs) / len(case.ok), n=len(runs)
        )
        yield Advice("steadiness", text, evidence, _longer(case))


def starting(case: Case) -> Iterator[Advice]:
    """Starting up takes longer than what was measured: how long a training must be for it not to matter."""
    if "startup_seconds" not in case.ok:
        return
    runs = case.ok[case.ok["startup_seconds"] > case.ok["window_seconds"]]
    if len(runs):
        evidence = _share(case, runs, "startup_seconds")
        assert evidence.ratio is not None  # noqa: S101
        text = (
            f"Starting up took {evidence.ratio:.2g} s with {listed(evidence.configurations, 2)}, longer than the window: "
            f"it is more than {100 * LOSS:.0f} % of trainings shorter than {evidence.ratio / LOSS:,.0f} s."
        )
        yield Advice("start-up", text, evidence)


def nothing_compared(case: Case) -> Iterator[Advice]:
    """What to run where no two configurations can be compared."""
    if len(case.ok) and not case.changes:
        count = case.table["config_id"].nunique()
        what = "Only one configuration ran" if count == 1 else "No two configurations differ in one thing only"
        text = f"{what}, so no way to train can be compared: let a matrix vary one field at a time."
        action = "matrix: {precision: [fp32, bf16]}, repeats: 3"
        yield Advice(
            "next", text, Evidence(len(case.ok), case.names(case.table["config_id"]), "configurations"), action
        )


def _percent(evidence: Evidence) -> str:
    assert evidence.ratio is not None  # noqa: S101
    return f"{100 * evidence.ratio:.2g} %"
