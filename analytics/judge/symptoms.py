"""What runs tell of themselves: waiting for data or for a slow rank, heat, memory to spare or none, failures, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from analytics.judge import stats
from analytics.judge.advice import Advice, Case, Evidence, digits, listed, thin
from analytics.judge.gains import differs, undecided
from analytics.judge.matched import Change, flagged, plain
from analytics.judge.stats import LOSS, SAME
from analytics.runs.frame import asked
from analytics.text import printable, repeats_words
from bench.figures.flags import STRAGGLER_RATIO
from bench.record import Status

WAITS = 0.1
"""Share of a step from which on waiting is worth a sentence."""
MANY = 20
"""More repeats than this, beyond those made, are no advice."""
_EXPOSED = "exposed_communication_share"
_AT_BEST = "the saving is at best: that all of the waiting goes"


def _evidence(case: Case, runs: pd.DataFrame, measure: str) -> Evidence:
    """Evidence of runs: of a figure the median and range of the configuration where it is largest."""
    names = case.names(runs["config_id"])
    if measure not in runs or runs[measure].isna().all():
        return Evidence(len(runs), names, measure, n=len(runs))
    worst = runs[runs["config_id"] == runs.groupby("config_id")[measure].median().idxmax()][measure]
    middle, least, most = (float(value) for value in (worst.median(), worst.min(), worst.max()))
    return Evidence(len(runs), names, measure, middle, least, most, len(worst))


def _always(case: Case, column: str, above: float, but: str = "") -> tuple[pd.DataFrame, Evidence, float]:
    """Return the runs of configurations of which every run has more than `above` of a figure, and its median.

    The parallelism `but` is left out.
    """
    among = case.ok[case.ok["parallelism"] != but] if column in case.ok else case.ok[:0]
    runs = among[among.groupby("config_id")[column].transform("min") > above] if len(among) else among
    if runs.empty:
        return runs, Evidence(0, (), column), 0.0
    evidence = _evidence(case, runs, column)
    return runs, evidence, evidence.ratio or 0.0


_OUTSIDE = {
    "throttled": "heat or a power brake slowed the GPU down{}. {}: cool it, raise its power limit or wait until it is cool",
    "shared_gpu": "other processes used the GPU{}. {}: choose free ones with --gpus, or wait for them to end",
}


def disturbed(case: Case) -> Iterator[Advice]:
    """Heat, and others on the GPU: figures that are not the training's own."""
    for flag, what in _OUTSIDE.items():
        runs = case.ok[flagged(case.ok, flag)]
        if len(runs):
            evidence = _evidence(case, runs, "throttled_share" if flag == "throttled" else flag)
            share = f", for up to {evidence.high:.0%} of the time" if evidence.high else ""
            again = what.format(share, "Their times cannot be compared with others and are left out here")
            text = f"In {len(runs)} of {len(case.ok)} runs {again}, then run again."
            yield Advice(flag.removesuffix("_gpu"), text, evidence, first=True)


def waiting(case: Case) -> Iterator[Advice]:
    """The devices wait for data."""
    runs, evidence, share = _always(case, "data_wait_share", WAITS)
    if len(runs):
        workers = runs.get("workload_args.workers", pd.Series([0.0])).fillna(0).max()
        gpu = runs["device_type"].eq("cuda").any()
        action = f"workload_args.workers: {max(2, 2 * int(workers))}" + (
            ", workload_args.pin_memory: true" if gpu else ""
        )
        waits = f"training waits for its data {digits(100 * share)} % of the time"
        limits = () if gpu else ("on a CPU the loaders take processors from the training: look whether it gains",)
        if weak := thin(runs, evidence.n):
            text = f"It looks as if the {waits}: loading them in more processes may help."
            yield Advice("input", text, evidence, limits=(weak, *limits), weak=True)
            return
        text = f"The {waits}: load them in more processes."
        yield Advice("input", text, evidence, action, share, (_AT_BEST, *limits))


def straggling(case: Case) -> Iterator[Advice]:
    """One rank is slower than the others, who wait for it. Stages of a pipeline differ by nature."""
    runs, evidence, ratio = _always(case, "straggler_ratio", STRAGGLER_RATIO, but="pp")
    if runs.empty or "straggler_rank" not in runs or runs["straggler_rank"].isna().any():
        return
    ranks = {int(rank) for rank in runs["straggler_rank"]}
    if len(ranks) > 1 or float(runs["devices"].min()) ** (1 - len(runs)) > 0.05:
        return  # chance may pick the same one each time
    devices = {*runs["straggler_device"].dropna()} - {"cpu"}
    which = f"rank {ranks.pop()}" + (f" ({printable(devices.pop(), 50)})" if len(devices) == 1 else "")
    text = f"one rank takes {digits(ratio)} times as long as the others, who wait for it"
    text += f"; it is {which} in all {len(runs)} runs"
    if weak := thin(runs, evidence.n):
        yield Advice("straggler", f"It looks as if {text}.", evidence, limits=(weak,), weak=True)
        return
    text = f"O{text[1:]}: look at its clocks, its heat and its neighbours."
    yield Advice("straggler", text, evidence, saving=1 - 1 / ratio, limits=(_AT_BEST,))


def communicating(case: Case) -> Iterator[Advice]:
    """Ranks wait for the network or for each other; another parallelism that was measured may be faster."""
    runs, evidence, share = _always(case, _EXPOSED, WAITS)
    if runs.empty:
        return
    names, profiled = listed(evidence.configurations, 2), "from a few profiled steps after the window"
    text = f"With {names}, devices wait for each other up to {digits(100 * share)} % of a step: "
    better = [one for change in case.changes if (one := _faster(change, runs)) is not None]
    waits = [(float(fast[_EXPOSED].median()), fast) for fast in better if fast[_EXPOSED].max() < share / 2]
    if not waits:
        text += "a larger batch a device, or accumulation, would let them exchange less often."
        weak = thin(runs, evidence.n)
        limits = (*([weak] if weak else []), "not measured: a thing to try", profiled)
        yield Advice("communication", text, evidence, limits=limits, weak=bool(weak))
        return
    least, fast = min(waits, key=lambda one: one[0])
    way = printable(fast["parallelism"].iloc[0], 40)
    text += f"{way} waits {digits(100 * least)} % and was faster"
    if weak := thin(pd.concat([runs, fast]), min(evidence.n, len(fast))):
        yield Advice("communication", f"{text}, as it looks.", evidence, limits=(weak, profiled), weak=True)
        return
    text += "; choose it unless the model does not fit."
    yield Advice("communication", text, evidence, f"parallelism: {way}", limits=(profiled,))


def _faster(change: Change, waiting: pd.DataFrame) -> pd.DataFrame | None:
    """The runs of another parallelism that beat those that wait, where a change has measured that."""
    ratio = differs(change, change.main)
    if change.topic.name != "parallelism" or 1 - SAME <= ratio <= 1 + SAME:
        return None
    fast, slow = change.runs if ratio < 1 else change.runs[::-1]
    return fast if _EXPOSED in fast and slow["config_id"].isin(waiting["config_id"]).all() else None


def spare(case: Case) -> Iterator[Advice]:
    """Less than half of the memory is used, and no other batch was tried."""
    known = case.ok[case.ok["memory_available_bytes"].notna()] if "memory_available_bytes" in case.ok else case.ok[:0]
    share = known["peak_memory_bytes"] / known.get("memory_available_bytes", math.nan)
    if any(change.topic.name == "batch" for change in case.changes) or not share.max() < 0.5:
        return
    top = known.loc[share == share.max()].iloc[0]
    used, there = (f"{top[c] / 1e9:.3g}" for c in ("peak_memory_bytes", "memory_available_bytes"))
    saved = sorted({printable(name, 40) for name in known["memory"].dropna()} - {"none"})
    also = f", and without memory: {' or '.join(saved)}" if saved else ""
    text = f"Memory is to spare: {used} of {there} GB at most. Try a larger batch, which may be faster{also}."
    limits = ("not measured: a thing to try", "a larger batch makes fewer updates from the same samples")
    evidence = _evidence(case, known, "peak_memory_bytes")
    yield Advice("memory to spare", text, evidence, "batch_size_per_device: max", limits=limits)


def too_large(case: Case) -> Iterator[Advice]:
    """Configurations that did not fit into the memory, and the nearest that did: of several that with most samples."""
    columns = [c for c in asked(case.df) if c not in ("global_batch_size", "devices_per_node")]
    lost = case.df[case.df["status"] == Status.OUT_OF_MEMORY]
    for _, runs in list(lost.groupby("config_id", sort=False))[:2]:
        row = runs.iloc[-1]
        wanted = row.get("attempted_bytes", math.nan)
        room = "" if pd.isna(wanted) else f" (it asked for {wanted / 1e9:.3g} GB more)"
        text, action = f"{printable(row['label'], 80)} does not fit into the memory{room}", "memory: recompute"
        here = case.ok[case.ok["workload"] == row["workload"]].sort_values("global_batch_size", ascending=False)
        if here.empty:
            text += ": try half the batch, precision bf16 or memory recompute."
        else:
            differ = here[columns].astype("str").fillna("") != row[columns].astype("str").fillna("")
            near = differ.loc[differ.sum(axis=1).sort_values(kind="stable").index[0]]
            other = here.loc[near.name]
            action = ", ".join(f"{c}: {plain(other[c])}" for c in columns if near[c] and pd.notna(other[c]))
            text += f"; the nearest that does has {action}."
        evidence = Evidence(len(runs), (printable(row["label"], 80),), "runs out of memory", n=len(runs))
        yield Advice("out of memory", text, evidence, action)


def failing(case: Case) -> Iterator[Advice]:
    """Runs that failed for other reasons; those that this machine cannot do count only where nothing else ran."""
    bad = [Status.FAILED, Status.TIMEOUT, Status.INVALID, *([Status.SKIPPED] if case.ok.empty else [])]
    lost = case.df[case.df["status"].isin(bad)]
    if len(lost):
        row = lost.iloc[-1]
        skipped = (lost["status"] == Status.SKIPPED).all()
        what, action = (
            ("were skipped, the last one", "Nothing was run.")
            if skipped
            else (f"failed, the last one ({row['status']})", "Fix that, then run the same command with --retry.")
        )
        text = f"{len(lost)} of {len(case.df)} runs {what}: {printable(row['error_message'], 160)}. {action}"
        names = tuple(dict.fromkeys(printable(label, 60) for label in lost["label"]))
        yield Advice("failures", text, Evidence(len(lost), names, "failed runs", n=len(lost)))


def uncertain(case: Case) -> Iterator[Advice]:
    """Comparisons that the repeats do not decide, and how many would."""
    waiting = [change for change in case.changes if undecided(change)]
    if not waiting:
        return
    faster = [change.topic.name == "devices" and change.verdict("time") != "cannot tell" for change in waiting]
    names = tuple(
        (f"whether {change.title} are worth their device-hours" if paid else change.title)
        + f" against {change.baseline}"
        for change, paid in zip(waiting, faster, strict=True)
    )
    sides = {str(id(runs)): runs for change in waiting for cell in change.cells for runs in cell}
    metric = waiting[0].metric(waiting[0].main) or ""
    noise, degrees = stats.pooled(runs[metric] for runs in sides.values() if metric in runs)
    fewest, count = min(map(len, sides.values())), len({at for runs in sides.values() for at in runs.index})
    if not degrees:
        text = f"Cannot tell yet: {listed(names)}; each ran once, so that nothing is known of noise: ask for 3 repeats."
        yield Advice("repeats", text, Evidence(count, names, "one repeat each", n=1), "repeats: 3")
        return
    devices = [change.topic.name == "devices" and not paid for change, paid in zip(waiting, faster, strict=True)]
    more = [c.more_repeats("time" if alone else c.main) for c, alone in zip(waiting, devices, strict=True)]
    told = [f"{name} ({repeats_words(n)})" if n else name for name, n in zip(names, more, strict=True)]
    few = [n or 0 for n in more if (n or 0) <= MANY]
    longer = "measure longer, or on a quieter machine"
    if few:
        longer = "so many more should tell" + (f"; where that is too many, {longer}" if len(few) < len(more) else "")
    spread = f"{fewest} repeat{'s' * (fewest > 1)} that differ by {digits(100 * noise)} %"
    text = f"Cannot tell yet ({spread}): {listed(told)}; {longer}."
    evidence = Evidence(count, names, "spread of repeats", noise, n=fewest)
    yield Advice("repeats", text, evidence, f"repeats: {max(3, fewest + max(few))}" if few else _longer(case))


def _longer(case: Case) -> str:
    """A window five times as long, as a suite says it; nothing of runs that do not tell theirs."""
    steps, seconds = case.ok["measure_steps"].median(), case.ok["window_seconds"].median()
    longer = "" if pd.isna(seconds) else f"measure_seconds: {math.ceil(5 * seconds)}"
    return longer if pd.isna(steps) else f"measure_steps: {5 * int(steps)}"


def unsteady(case: Case) -> Iterator[Advice]:
    """Windows that were short or unsteady, on a machine that others used: in half of the runs or more."""
    runs = case.ok[flagged(case.ok, "not_steady", "noisy_host", "window_too_short", "steady_unknown")]
    if len(runs) and 2 * len(runs) >= len(case.ok):
        seconds = case.ok["window_seconds"].median()
        text = (
            f"In {len(runs)} of {len(case.ok)} runs the speed was not steady, or others used the machine"
            + (f" (windows of {digits(seconds)} s)" if pd.notna(seconds) else "")
            + ": measure longer and when nothing else runs, before small differences are believed."
        )
        yield Advice("steadiness", text, _evidence(case, runs, "unsteady runs"), _longer(case))


def starting(case: Case) -> Iterator[Advice]:
    """Starting up takes longer than what was measured: how long a training must be for it not to matter."""
    late = case.ok["startup_seconds"] > case.ok["window_seconds"]
    runs = case.ok[late.groupby(case.ok["config_id"]).transform("all")]
    if len(runs):
        evidence = _evidence(case, runs, "startup_seconds")
        seconds = evidence.ratio or 0.0
        text = (
            f"Starting up took {digits(seconds)} s with {listed(evidence.configurations, 2)}, longer than the window: "
            f"it is more than {100 * LOSS:.0f} % of trainings shorter than {seconds / LOSS:,.0f} s."
        )
        yield Advice("start-up", text, evidence)


def nothing_compared(case: Case) -> Iterator[Advice]:
    """What to run where no two configurations can be compared."""
    if len(case.ok) and not case.changes:
        one = case.changes.table["config_id"].nunique() == 1
        what = "Only one configuration ran" if one else "No two configurations differ in one thing only"
        text = f"{what}, so no way to train can be compared: let a matrix vary one field at a time."
        action = "matrix: {precision: [fp32, bf16]}, repeats: 3"
        yield Advice("next", text, _evidence(case, case.ok, "configurations"), action)
