"""The answer of stored runs: what to take from them, how sure that is, what to do next, then results and how they scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analytics.interval import Interval
from analytics.judge.comparable import unequal_training
from analytics.judge.compare import COSTS, Comparison
from analytics.judge.matched import Change, flagged
from analytics.law.outlook import CONTRADICTED, contradictions, outlook
from analytics.law.series import SeriesFit, fit
from analytics.quantities import quantity
from analytics.runs.frame import of_tables
from analytics.runs.selection import TOGETHER
from analytics.say import answer
from analytics.say.advice import listed, option_words
from analytics.say.answer import Found
from analytics.say.blocks import Block, Commands, Note, Sentence, Table, command, unnamed
from analytics.say.law import law_blocks, prediction_blocks, series_names, series_sentences
from analytics.say.names import (
    START,
    full_names,
    grouped,
    metric_name,
    named,
    run_again,
    spoken,
    why_ended,
)
from analytics.say.table import (
    FIGURES,
    MANY,
    cell,
    chance_words,
    marks,
    results_table,
    served,
    to_target,
    verdict,
    verdict_cell,
)
from analytics.text import counted, interval, number, percent, printable, written
from bench.figures.flags import STRAGGLER_RATIO, grade, meaning
from bench.record import Provenance, Status

_MOST_ANSWERS, _MOST_CELLS = 4, 4
_REPLAYED = str(Provenance.IMPORTED)
"""Provenance of readings of a recorded trace; tables of others have theirs by themselves."""
_PHRASES = {
    "noisy_host": "a busy host",
    "not_steady": "an unsteady speed",
    "steady_unknown": "too few steps",
    "straggler": "one slow rank",
    "straggler_node": "one slow node",
    "mixed_nodes": "nodes of different kinds",
    "slow_network": "sockets in place of InfiniBand",
    "windows_differ": "nodes that measured different times",
    "throttled": "GPUs slowed down by heat or power",
    "shared_gpu": "other users on the GPU",
    "window_too_short": "too short a window",
    "loss_not_decreasing": "a loss that did not decrease",
    "gap": "a gap in the readings of the meter",
    "energy_partly_covered": "readings that do not cover the window",
    "meter_failed": "a failed meter",
    "unvalidated_sensor": "an unchecked sensor",
    "above_matmul_peak": "an impossible speed",
    "devices_differ": "other devices than asked for",
    "precision_differs": "another precision than asked for",
    "no_steps": "no reported steps",
    "imported": "imported figures",
}
"""What is wrong with a measurement, in short; other flags have the sentence of `bench.figures.flags`."""
_GIVEN = ("short_window", "energy_estimated", "energy_absent", "pue_unknown", "electricity_unknown", "idle_unknown")
"""Flags whose content stands elsewhere in the answer."""


def results(
    df: pd.DataFrame,
    devices: Sequence[int] = (),
    store: str | None = None,
    suite_file: str | None = None,
    notes: Sequence[Note] = (),
    asked: Sequence[str] = (),
) -> list[Block]:
    """Return the answer of a frame of runs, execution by execution.

    `devices` are numbers of devices to predict the speed of; `store` and `suite_file` are those that commands need to name.
    `notes` are printed before the commands; `asked` are options of the cluster that they need.
    """
    executions = answer.find(df)
    blocks = [block for found in executions for block in execution_blocks(found, devices, suite_file, store, asked)]
    several = not devices and df["devices"].nunique() > 1
    fitted = several and any(_predicts(one) for found in executions for one in found.law.series)
    return [*blocks, *notes, *_next(df, store, fitted=fitted), *unnamed(store)]


def _predicts(series: SeriesFit) -> bool:
    """Whether the law of a series predicts, as it does not contradict what was measured."""
    return CONTRADICTED not in contradictions(series.law(), series.observations())


def predictions(df: pd.DataFrame, devices: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the law predicts for each series and size of the runs on numbers of devices, as documents."""
    sizes = [
        (series, size.flops_per_sample) for series in (fit(df).series if devices else ()) for size in series.by_work
    ]
    return [one.to_dict() for series, work in sizes for one in outlook(series, devices, work)]


def execution_blocks(
    found: Found,
    devices: Sequence[int] = (),
    suite_file: str | None = None,
    store: str | None = None,
    asked: Sequence[str] = (),
) -> Iterator[Block]:
    """Yield the answer of one execution."""
    runs, own, names = found.runs, found.own, found.names
    yield Sentence(_title(found), "title")
    yield from (Sentence(text, "answer") for text in (*answers(found), *_sureness(found, suite_file, store, asked)))
    yield from prediction_blocks(found.law.series, devices, found.models)
    if len(own):
        unequal = unequal_training(runs[runs["saves"].isna()] if "saves" in runs else runs) is not None
        yield results_table(own, names, unequal=unequal, steps=found.steps)
        yield from map(Note, filter(None, [" ".join(_under(own)), _marks(found)]))
        yield from (*served(own, full_names(names)), *to_target(own, full_names(names)))
    if found.tested:
        yield from law_blocks(found.law.series, found.models)
    elif not found.law.series and len(own):
        yield Note(_unfitted(runs))
    yield from (Note(text, "Careful") for text in filter(None, [_careful(found), "; ".join(missing(runs))]))
    if found.probes:
        yield Note(f"{counted(found.probes, 'short probe')} of a search (bench pareto).", "Left out")
    if found.steps:
        yield steps_table(found.steps)
    if len(own):
        yield from (Sentence(text, detail=True) for text in _evidence(found))


def _title(found: Found) -> str:
    runs, own = found.runs, found.own
    machines = " and ".join(sorted(map(printable, runs["device_name"].dropna().unique())))
    host = found.law.series[0].host if found.law.series else None
    share = f" ({host.devices} devices)" if host is not None and host.shares and host.devices else ""
    repeats: list[int] = own["repeats"].unique().tolist() if len(own) else []
    times = f" x {repeats[0]}" if len(repeats) == 1 and repeats[0] > 1 else ""
    well = int((runs["status"] == Status.OK).sum())
    ended = "all ended well" if well == len(runs) else f"{well} ended well"
    if early := int(flagged(runs[runs["status"] == Status.OK], "ended_early").sum()):
        asked = [f"{well - early} ended as asked"] if well > early else []
        ended = ", ".join([*asked, f"{early} {'was' if early == 1 else 'were'} ended early"])
    count = f"{len(own)} configuration{'s' * (len(own) != 1)}{times}"
    done = runs.loc[runs["status"] != Status.SKIPPED, "num_nodes"]
    nodes = int(done.max()) if done.notna().any() else 1
    where = f" on {'up to ' * (len(own) > 1)}{nodes} nodes of {machines}" if nodes > 1 else f" on {machines}{share}"
    where = where if machines else ""
    return f"{printable(runs['suite'].iloc[0])}: {len(runs)} run{'s' * (len(runs) != 1)}{where}, {count}, {ended}"


def answers(found: Found) -> Iterator[str]:
    """Yield what each option brings, devices and precision first, then what differs most; and what is still open."""
    if found.own.empty:
        yield "No run ended well, so there is no result."
        return
    if found.steps:
        yield from _climbed(found)
        return
    pairs = zip(found.own["config_id"].astype(str), found.names.itertuples(index=False), strict=True)
    words = dict(pairs)
    changes = _changes(found)
    lines = [line for change in changes if (line := change_sentence(change, words))]
    texts = [_undecided(change) for change in changes if not change_sentence(change, words)]
    if texts:
        more = " (+N: N more repeats of each should decide)" if "+" in " ".join(texts) else ""
        lines = [*lines[:_MOST_ANSWERS], f"Faster? Not decided yet{more}: {'; '.join(texts[:_MOST_ANSWERS])}."]
    yield from lines[: _MOST_ANSWERS + 1] or _alone(found.own, found.names)


def _changes(found: Found) -> list[Change]:
    """Return the changes that are told: of devices those of the largest number."""
    changes = [change for change in found.changes if change.found(_measure(change)) is not None]
    most = max((_count(change) for change in changes), default=0)
    changes = [change for change in changes if change.topic.name != "devices" or _count(change) == most]
    ranks = {"devices": 0, "precision": 1}
    return sorted(
        changes,
        key=lambda one: (ranks.get(one.topic.name, 2), -abs(math.log(one.ratio(_measure(one)).value))),
    )


def _count(change: Change) -> int:
    """Return the number of devices of an option; 0 for other options."""
    return int(change.option.split()[0]) if change.topic.name == "devices" else 0


def _measure(change: Change) -> str:
    return "time" if change.main == "knee" else change.main


def _climbed(found: Found) -> Iterator[str]:
    """Say what all steps of a ladder bring together, and which of them alone."""
    effects = [(spoken(step.name), e) for step in found.steps if (e := step.effect("samples_per_second"))]
    if not effects:
        yield "No step of the ladder has a speed to compare."
        return
    *each, (_, whole) = effects
    state = "" if whole.verdict != "cannot tell" else f": {verdict(whole)}"
    yield f"All {len(each)} steps together train {_factor(whole.interval)} as fast as the {START}{state}."
    decided = [
        f"{name} {'probably ' * (e.probably is not None)}{_factor(e.interval)}"
        for name, e in each
        if e.probably or e.verdict in ("better", "worse")
    ]
    alone = f"Alone: {'; '.join(decided)}" if decided else "No step alone is decided yet"
    yield f"{alone}{'; the others are undecided' * (0 < len(decided) < len(each))}."


def _alone(own: pd.DataFrame, names: pd.DataFrame) -> Iterator[str]:
    """Yield the figures of the only configuration, or what is missing for a comparison."""
    if len(own) > 1 and flagged(own, "devices_differ", "precision_differs").any():
        yield "The command did not use what it was asked to use, so no change is compared (bench advise)."
        return
    if len(own) > 1:
        yield "These configurations differ in several things at once, so no single change is compared."
        return
    row, texts = own.iloc[0], []
    for group in FIGURES[:2]:
        name = next((name for name in group if pd.notna(row[name])), None)
        if name is not None:
            texts.append(f"{'~' * quantity(name).estimated}{cell(row, name)} {quantity(name).unit}")
    label = ", ".join(filter(None, names.iloc[0]))
    what = ", ".join(texts) or "no throughput was reported; the figures are of the whole run"
    yield f"{label}: {what}."


def change_sentence(change: Change, words: dict[str, Any]) -> str:
    """Say what an option brings: one factor where the cells agree, else each or their ends; nothing where none is decided."""
    measure = _measure(change)
    found = change.found(measure)
    assert found is not None  # noqa: S101  the caller has chosen such changes
    option, baseline = option_words(change, change.option), option_words(change, change.baseline)
    s, use = "" if option.endswith(("devices", "nodes")) else "s", " in use" if measure == "time in use" else ""
    if found.verdict == "equivalent":
        return f"{option} and {baseline} are equally fast{use}, within 2 %."
    if found.whole is not None and found.verdict != "cannot tell":
        speed = found.whole.cost.inverse()
        gain, bracket, ends = _factor(speed).partition(" (")
        kept = (
            f": each keeps {percent(speed.value / change.grew)} of its speed" if change.topic.name == "devices" else use
        )
        return f"{option} train{s} {gain} as fast as {baseline}{bracket}{ends}{kept}."
    pairs = zip(change.pairs, found.effects, strict=True)
    cells = sorted(((e.cost.inverse(), _place(pair, words), e.verdict) for pair, e in pairs), key=lambda c: c[0].value)
    if found.whole is not None:
        cells = [cell for cell in cells if cell[2] in ("better", "worse")]
    if not cells:
        return ""
    verdict_ = found.verdict if found.whole is None else cells[0][2] if len({c[2] for c in cells}) == 1 else ""
    heads = {"better": f"beat{s}", "worse": "is slower than" if s else "are slower than"}
    few = [f"{_factor(cells[0][0])} with {cells[0][1]}"] if len(cells) == 1 else []
    few = few or [f"{interval(speed.value)}x ({place})" for speed, place, _ in cells]
    listed = ", ".join(few) if len(few) <= _MOST_CELLS else f"{few[0]} to {few[-1]}"
    rest = "; the rest is undecided" * (len(cells) < len(found.effects))
    head = f"{option} {heads[verdict_]} {baseline}" if verdict_ in heads else f"{option} depends on the configuration"
    return f"{head}{use}: {listed}{rest}."


def _undecided(change: Change) -> str:
    """Name an option with its factor, and how many more repeats should tell."""
    measure = _measure(change)
    more = change.more_repeats(measure)
    tail = f" +{more}" if more is not None and more <= MANY else ""
    base = f" of {option_words(change, change.baseline)}" * (change.topic.name == "devices")
    found = change.found(measure)
    likely = "probably " * (found is not None and found.probably is not None)
    return f"{option_words(change, change.option)} {likely}{_factor(change.ratio(measure).inverse())}{base}{tail}"


def _factor(speed: Interval) -> str:
    """Print a factor with its interval: `1.75x (1.72-1.79)`."""
    value, _, tail = written(speed).partition(" (")
    return f"{value}x ({tail}" if tail else f"{value}x"


def _place(pair: tuple[str, str], words: dict[str, Any]) -> str:
    """Name a cell by its kind of work, or else by what both sides of it share."""
    option, baseline = words[pair[0]], words[pair[1]]
    shared = [part for part in option.change.split(", ") if part in baseline.change.split(", ")]
    works = {pair.work for pair in words.values()}
    return ", ".join([*([option.work] if len(works) > 1 or not shared else []), *shared])


def _sureness(found: Found, suite_file: str | None, store: str | None, asked: Sequence[str]) -> Iterator[str]:
    """Say how far the figures can be trusted, and the command that makes them surer."""
    own = found.own
    grades = set(own["grade"].dropna()) if len(own) else set()
    flags = [flag for text in own["flags"] for flag in str(text).split()] if len(own) else []
    once = ["no repeats"] if len(own) and (own["repeats"] < 2).all() else []
    worst = [flag for flag in dict.fromkeys(flags) if flag in _PHRASES and grade([flag]) == max(grades, default="")]
    reasons = [*once, *(_PHRASES[flag] for flag in worst)][:2]
    quick = "short_window" in flags
    if grades == {"A"}:
        yield "Fit for publication: every configuration has grade A."
    elif grades:
        head = "Some figures may be wrong" if "C" in grades else "A quick look" if quick else "Sound, with limits"
        yield f"{head} ({', '.join(reasons)})." if reasons else f"{head}."
    steps = [e.more_repeats for step in found.steps if (e := step.effect("samples_per_second"))]
    counts = steps if found.steps else [one.more_repeats(_measure(one)) for one in _changes(found)]
    few = [count for count in counts if count is not None and count <= MANY] if len(own) > 1 else []
    few = [2] if once else few
    if few or quick:
        aim, options = ("To decide" if len(own) > 1 else "For intervals") if few else "To publish", ["--publish"]
        options = ["--set", f"repeats={own['repeats'].max() + max(few)}"] if few else options
        suite, more = found.runs["suite"].iloc[0], max(few, default=None)
        yield f"{aim}: {run_again(suite, found.runs, more, *asked, *options, store=store, file=suite_file)}"


def _marks(found: Found) -> str:
    """Say where a ladder starts, and what the marks of its steps and `probably` mean."""
    if not found.steps:
        several = [one for change in _changes(found) if (one := change.found(_measure(change))) and one.probably]
        return chance_words(one.whole.among if one.whole else None for one in several) if several else ""
    start = named(found.own.drop(columns="ladder"))["change"].iloc[0]
    gains = [effect for step in found.steps if (effect := step.effect("samples_per_second"))]
    return " ".join([f"Start: {start}.", *marks(gains)])


def _under(own: pd.DataFrame) -> Iterator[str]:
    """Explain the marks of the table of results, and what is missing in it."""
    measured, estimated = own["energy_joules"].notna(), own["run_energy_joules_estimated"].notna()
    theirs, flags = bool(of_tables(own).all()), " ".join(own["flags"].fillna(""))
    if (modelled := ~measured & estimated).any():
        sources = set(own.loc[modelled, "energy_provenance"])
        replayed = "~ replayed from a recorded trace, not read from this machine" * (_REPLAYED in sources)
        model = "~ estimated by CodeCarbon, as no meter could be read (bench doctor)" * (sources != {_REPLAYED})
        yield "~ estimated, as the file says." if theirs else f"{'; '.join(filter(None, [replayed, model]))}."
    elif not measured.all() and not theirs:
        yield "No energy: no meter could be read (bench doctor)."
    missing_parts = sorted({w for text in own.loc[measured, "energy_missing"].dropna() for w in text.split()})
    if missing_parts:
        yield f"Energy lacks {' and '.join(missing_parts)}, which could not be measured (bench doctor)."
    if (
        (measured | estimated).any()
        and own["emissions_kg"].isna().all()
        and not theirs
        and "carbon_differs" not in flags
    ):
        yield "Carbon: name a region (bench report --region FR)."
    if own["cost_usd"].isna().all() and not theirs and "costs_differ" not in flags:
        yield "Cost: give a price (bench report --price 2.10)."


def _unfitted(runs: pd.DataFrame) -> str:
    what = "No law is fitted" if runs["samples_per_second"].notna().any() else "Nothing is predicted"
    give = " Import them with flops_per_sample, or with parameters and sequence_length."
    return f"{what}: the work of a sample (FLOP) is unknown.{give if of_tables(runs).all() else ''}"


def _careful(found: Found) -> str:
    """Say what was wrong with the measurements, and with how many."""
    own = found.own
    flags = [(flag, who) for flag, who in _flagged(own, found.names) if flag not in _GIVEN]
    texts = [f"{_PHRASES.get(flag, meaning(flag))}{_slow_nodes(found.runs, flag)} ({who})" for flag, who in flags]
    if len(own) and (own["repeats"] < 2).any() and (own["repeats"] > 1).any():
        texts.append("one repeat has no interval: run 3 or more")
    return "; ".join(texts)


def _slow_nodes(runs: pd.DataFrame, flag: str) -> str:
    """Name the nodes that were slow, where that is what a flag says."""
    if flag != "straggler_node" or "straggler_node_name" not in runs:
        return ""
    slow = runs[runs["straggler_node_ratio"] > STRAGGLER_RATIO]
    return f", {listed(sorted(map(printable, slow['straggler_node_name'].dropna().unique())))}"


def _flagged(own: pd.DataFrame, names: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield each flag with the configurations that have it."""
    if len(own):
        yield from grouped(zip(full_names(names), own["flags"].fillna("").str.split(), strict=True))


def missing(runs: pd.DataFrame) -> list[str]:
    """Say which configurations did not end well, and why."""
    table = runs.drop_duplicates("config_id", keep="last").set_index("config_id", drop=False)
    names, texts = named(table)["change"].str.split(", "), []
    for status, same in runs[runs["status"] != Status.OK].groupby("status", sort=False):
        parts = [names[config] for config in same["config_id"].unique() if config in names]
        shared = ", ".join(part for part in (parts or [[]])[0] if all(part in other for other in parts))
        count = f"{len(same)} run{'s' * (len(same) > 1)}" + f" ({shared})" * bool(shared)
        texts.append(f"{count} {why_ended(str(status), same['error_message'])}")
    return texts


def steps_table(comparisons: Sequence[Comparison]) -> Table:
    """A table of figures relative to the baseline, with the verdict, and the quality of both."""
    shown = [metric for metric in COSTS if any(one.effect(metric) for one in comparisons)]
    quality = [
        q for q in ("validation_loss", "validation_accuracy") if any(q in (c.quality or {}) for c in comparisons)
    ]
    rows = [
        (
            spoken(one.name),
            *(f"{written(e.interval)} {verdict_cell(e)}" if (e := one.effect(metric)) else "-" for metric in shown),
            *(_before_after(one, name) for name in quality),
        )
        for one in comparisons
    ]
    columns = ("step", *(metric_name(name, mark=True) for name in (*shown, *quality)))
    return Table("Each step / the one above, for the same work", columns, tuple(rows), figures=False, detail=True)


def _before_after(comparison: Comparison, name: str) -> str:
    before, after = (comparison.baseline_quality or {}).get(name), (comparison.quality or {}).get(name)
    return "-" if before is None or after is None else f"{number(before)} -> {number(after)}"


def _evidence(found: Found) -> Iterator[str]:
    """Yield definitions and the evidence behind the answer."""
    own = found.own
    yield "Figures are geometric means over repeats with 95 % intervals; quality is a median, memory the largest peak."
    for name, series in zip(series_names(found.law.series), found.law.series, strict=True):
        yield from (f"{name}: {line}" for line in series_sentences(series))
    yield from (*_systematic(own[own["energy_joules"].notna()]), *_limits(own, found.names))


def _systematic(measured: pd.DataFrame) -> Iterator[str]:
    """What repeats do not show of measured energy, what of it is idle power, and what a start takes."""
    share = (measured["energy_systematic_joules"] / measured["energy_joules"]).max()
    if share > 0:
        yield f"measured energy: repeats aside, ± {percent(share)} (gain of the sensors, assumed, and edges)"
    idle = (1 - measured["energy_above_idle_joules"] / measured["energy_joules"]).median()
    if not math.isnan(idle):
        yield f"of it {percent(idle)} would be drawn idle too (attributed: idle power × time)"
    row = measured[["startup_energy_joules", "startup_seconds"]].median()
    if not row.isna().any():
        start = " and ".join(f"{cell(row, name)} {quantity(name).unit}" for name in reversed(row.index))
        yield f"a start takes {start}, once (median), and is not in the figures above"


def _limits(own: pd.DataFrame, names: pd.DataFrame) -> Iterator[str]:
    """What compiling took, the largest batches, and what each flag means."""
    full = full_names(names)
    seconds = own["compile_seconds"].dropna()
    if len(seconds):
        yield f"compiling took {interval(seconds.min())} to {interval(seconds.max())} s of a start"
    for place in own.index[own["label"].str.contains(" bmax ", regex=False)]:
        yield f"largest batch that fits, {full[place]}: {own['batch_size_per_device'][place]}"
    yield from (f"{meaning(flag)} ({who})" for flag, who in _flagged(own, names))


def _next(df: pd.DataFrame, store: str | None, *, fitted: bool) -> Iterator[Commands]:
    """Yield three commands to go on with, or fewer."""
    suites = list(dict.fromkeys(df["suite"].dropna()))
    if len(suites) != 1 or not (df["status"] == Status.OK).any():
        return
    suite = printable(suites[0], 100)
    most = int(df["devices"].max()) if df["devices"].notna().any() else 1
    names = suite.split(TOGETHER)
    more = ("fit", *names, "--devices", f"{2 * most},{4 * most}")
    if len(names) > 1:
        both = [("compare", *names)] if len(names) == 2 else []
        yield Commands(tuple(command(*line, store=store) for line in ([more] if fitted else []) + both))
        return
    first = [more] if fitted else [("compare", suite)] * (df["config_id"].nunique() > 1)
    lines = (*first, ("advise", suite), ("report", suite, "-o", f"{suite}.html"))
    yield Commands(tuple(command(*line, store=store) for line in lines))
