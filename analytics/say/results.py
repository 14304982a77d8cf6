"""The answer of stored runs: what to take from them, how sure that is, what to do next, then results and how they scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analytics.interval import Interval
from analytics.judge.matched import CellEffects, Change
from analytics.law import law as laws
from analytics.law.outlook import Outlook, outlook
from analytics.law.series import SeriesFit, fit
from analytics.quantities import quantity
from analytics.runs.frame import summary
from analytics.say import answer
from analytics.say.answer import Found
from analytics.say.blocks import Block, Commands, Note, Sentence, Table
from analytics.say.law import flag_words, series_sentences, time_sentences, unidentified
from analytics.say.names import named, word
from analytics.say.table import FIGURES, cell, results_table
from analytics.text import percent, printable, repeats_words, written
from bench.figures.flags import meaning
from bench.record import Status

_MOST_ANSWERS, _MOST_CELLS, _MOST_NOTED = 4, 4, 3
_PHRASES = {
    "noisy_host": "a busy host",
    "not_steady": "an unsteady speed",
    "straggler": "one slow rank",
    "throttled": "GPUs slowed down by heat or power",
    "shared_gpu": "other users on the GPU",
    "window_too_short": "a window too short for the meter",
    "loss_not_decreasing": "a loss that did not decrease",
    "gap": "a gap in the readings of the meter",
    "energy_partly_covered": "readings that do not cover the window",
    "meter_failed": "a failed meter",
    "unvalidated_sensor": "an unchecked sensor",
    "above_matmul_peak": "an impossible speed",
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
) -> list[Block]:
    """Return the answer of a frame of runs, execution by execution.

    `devices` are numbers of devices to predict the speed of; `store` and `suite_file` are those that commands need to name.
    `notes` are printed before the commands.
    """
    table, executions = summary(df), answer.find(df)
    blocks: list[Block] = []
    for found in executions:
        blocks += execution_blocks(found, found.configurations(table), devices, suite_file)
    fitted = any(found.law.series for found in executions)
    return [*blocks, *notes, *_next(df, store, fitted=fitted)]


def predictions(df: pd.DataFrame, devices: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the law predicts for each series of the runs on numbers of devices, as documents."""
    return [one.to_dict() for series in (fit(df).series if devices else ()) for one in outlook(series, devices)]


def execution_blocks(
    found: Found, own: pd.DataFrame, devices: Sequence[int] = (), suite_file: str | None = None
) -> Iterator[Block]:
    """Yield the answer of one execution; `own` is the summary of its configurations, with an index from 0."""
    names, unequal = named(own) if len(own) else pd.DataFrame(), answer.unequal(found.runs)
    yield Sentence(_title(found, own), "title")
    for text in (*_answers(found, own, names), *_sureness(own, suite_file)):
        yield Sentence(text, "answer")
    yield from _predictions(found.law.series, devices)
    if len(own):
        yield results_table(own, names, unequal=unequal)
        yield from _under(own, unequal=unequal)
        shown = names if names["work"].nunique() > 1 else names[["change"]]
        worded = own.assign(name=[", ".join(filter(None, pair)) for pair in shown.itertuples(index=False)])
        yield from (*answer.served(worded), *answer.to_target(worded))
        yield from _scaling(found)
    if not found.tested:
        yield from answer.conclusions(found)
    yield from (Note(text, "Careful") for text in filter(None, [_careful(own, names), _missing(found.runs)]))
    yield from (Sentence(text, detail=True) for text in _evidence(found, own))


def _title(found: Found, own: pd.DataFrame) -> str:
    runs = found.runs
    machines = " and ".join(sorted(map(printable, runs["device_name"].dropna().unique())))
    host = found.law.series[0].host if found.law.series else None
    share = f" ({host.devices} devices)" if host is not None and host.shares and host.devices else ""
    repeats: list[int] = own["repeats"].unique().tolist() if len(own) else []
    times = f" x {repeats[0]}" if len(repeats) == 1 and repeats[0] > 1 else ""
    well = int((runs["status"] == Status.OK).sum())
    ended = "all ended well" if well == len(runs) else f"{well} ended well"
    count = f"{len(own)} configuration{'s' * (len(own) != 1)}{times}"
    where = f" on {machines}{share}" if machines else ""
    return f"{printable(runs['suite'].iloc[0])}: {len(runs)} run{'s' * (len(runs) != 1)}{where}, {count}, {ended}"


def _answers(found: Found, own: pd.DataFrame, names: pd.DataFrame) -> Iterator[str]:
    """Yield what each option brings, devices and precision first, then what differs most."""
    if own.empty:
        yield "No run ended well, so there is no result."
        return
    words = {str(config): pair for config, pair in zip(own["config_id"], names.itertuples(index=False), strict=True)}
    changes = [change for change in found.changes if change.found(_measure(change)) is not None]
    most = max((_count(change) for change in changes), default=0)
    changes = [change for change in changes if change.topic.name != "devices" or _count(change) == most]
    changes.sort(key=lambda change: (_rank(change), -abs(math.log(change.ratio(_measure(change)).value))))
    lines = [change_sentence(change, words) for change in changes[:_MOST_ANSWERS]]
    yield from lines or _alone(own, names)


def _count(change: Change) -> int:
    """Return the number of devices of an option; 0 for other options."""
    return int(change.option.split()[0]) if change.topic.name == "devices" else 0


def _rank(change: Change) -> int:
    return {"devices": 0, "precision": 1}.get(
        change.topic.name, 2 if change.verdict(_measure(change)) != "cannot tell" else 3
    )


def _measure(change: Change) -> str:
    return "time" if change.main == "knee" else change.main


def _alone(own: pd.DataFrame, names: pd.DataFrame) -> Iterator[str]:
    """Yield the figures of the only configuration, or what is missing for a comparison."""
    if len(own) > 1:
        yield "These configurations differ in several things at once, so no single change is compared."
        return
    row, texts = own.iloc[0], []
    for group in FIGURES[:2]:
        name = next((name for name in group if pd.notna(row[name])), None)
        if name is not None:
            texts.append(f"{'~' * quantity(name).estimated}{cell(row, name)} {quantity(name).unit}")
    label = ", ".join(filter(None, names.iloc[0]))
    yield (
        f"{label}: {', '.join(texts)}."
        if texts
        else f"{label}: no throughput was reported; the figures are of the whole run."
    )


def change_sentence(change: Change, words: dict[str, Any]) -> str:
    """Say what an option brings: one factor where the cells agree, their range where they do not."""
    measure = _measure(change)
    found, ratio = change.found(measure), change.ratio(measure)
    assert found is not None  # noqa: S101  the caller has chosen such changes
    verdict = found.verdict
    option, baseline, speed = _option(change, change.option), _option(change, change.baseline), ratio.inverse()
    is_are, trains = ("are", "train") if option.endswith("devices") else ("is", "trains")
    use = " in use" if measure == "time in use" else ""
    if change.range(measure):
        cells = [
            (_place(pair, words), effect.cost.inverse().value)
            for pair, effect in zip(change.pairs, found.effects, strict=True)
        ]
        cells.sort(key=lambda cell: cell[1])
        shown = cells if len(cells) <= _MOST_CELLS else [cells[0], cells[-1]]
        listed = (", " if len(cells) <= _MOST_CELLS else " to ").join(f"{x:.2f}x ({place})" for place, x in shown)
        head = {"better": f"{option} beats {baseline}{use}", "worse": f"{option} is slower than {baseline}{use}"}
        return f"{head.get(verdict, f'{option} against {baseline} depends on the configuration')}: {listed}."
    factor = _factor(speed)
    if verdict == "equivalent":
        return f"{option} and {baseline} are equally fast{use}, within 2 %."
    if verdict == "cannot tell" and (parts := _told_in(change, found, words)):
        gain, place = parts
        return f"{option} {trains} {gain} as fast as {baseline}{use} with {place}; the rest cannot be told yet."
    if verdict == "cannot tell":
        more = change.more_repeats(measure)
        tail = f"; {repeats_words(more)} of each should tell" if more is not None else ""
        return f"Whether {option} {is_are} faster than {baseline}{use} cannot be told: {factor}{tail}."
    gain, bracket, ends = factor.partition(" (")
    kept = speed.value / change.grew
    each = f": each keeps {percent(kept)} of its speed" if change.topic.name == "devices" else use
    return f"{option} {trains} {gain} as fast as {baseline}{bracket}{ends}{each}."


def _told_in(change: Change, found: CellEffects, words: dict[str, Any]) -> tuple[str, str] | None:
    """Return the range of the factors that can be told, and in which cells; None where none can."""
    cells = zip(change.pairs, found.effects, strict=True)
    told = [(pair, effect) for pair, effect in cells if effect.verdict in ("better", "worse")]
    if not told:
        return None
    factors = sorted(effect.cost.inverse().value for _, effect in told)
    ends = dict.fromkeys(f"{factor:.2f}" for factor in (factors[0], factors[-1]))
    places = [_place(pair, words) for pair, _ in told]
    named_ = " or ".join(places) if len(places) <= 2 else f"{len(places)} of {len(found.effects)} configurations"
    return f"{'-'.join(ends)}x", named_


def _option(change: Change, option: str) -> str:
    """Put an option into words: `compiled` for `default`, `2 devices`."""
    if change.topic.noun != "{}":
        return printable(option)
    name, _, rest = option.partition(" ")
    return " ".join(filter(None, [word(change.topic.columns[0], name), printable(rest).replace("=", " ")]))


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


def _sureness(own: pd.DataFrame, suite_file: str | None) -> Iterator[str]:
    """Say how far the figures can be trusted, and what makes them fit for publication."""
    grades = own["grade"].dropna() if len(own) else pd.Series(dtype="str")
    if grades.empty:
        return
    flags = [flag for text in own["flags"] for flag in str(text).split()]
    named_flags = [_PHRASES[flag] for flag in dict.fromkeys(flags) if flag in _PHRASES][:2]
    if (grades == "A").all():
        yield "Fit for publication: every configuration has grade A."
        return
    quick = "short_window" in flags
    seconds = own["window_seconds"].median() if "window_seconds" in own else math.nan
    window = [f"{seconds:.0f} s windows"] if quick and seconds > 0 else []
    once = ["no repeats"] if (own["repeats"] < 2).all() else []
    reasons = ", ".join([*window, *once, *named_flags])
    head = "Some figures may be wrong" if (grades == "C").any() else "A quick look" if quick else "Sound, with limits"
    command = f": bench run {suite_file} --publish" if suite_file else ", run the suite with --publish."
    yield f"{head}{f' ({reasons})' if reasons else ''}.{f' To publish{command}' if quick else ''}"


def _under(own: pd.DataFrame, *, unequal: bool) -> Iterator[Note]:
    """Explain the marks of the table of results, and what is missing in it."""
    measured, estimated = own["energy_joules"].notna(), own["run_energy_joules_estimated"].notna()
    theirs, texts = bool(answer.imported(own).all()), []
    if (~measured & estimated).any():
        texts.append("~ estimated by CodeCarbon; no meter could be read (bench doctor)")
    elif not measured.all() and not theirs:
        texts.append("no energy: no meter could be read (bench doctor)")
    missing = sorted({w for text in own.loc[measured, "energy_missing"].dropna() for w in text.split()})
    if missing:
        texts.append(f"energy lacks {' and '.join(missing)}, which could not be measured (bench doctor)")
    if (measured | estimated).any() and own["emissions_kg"].isna().all():
        texts.append("carbon: name a region (bench report --region FR)")
    if own["cost_usd"].isna().all() and not theirs:
        texts.append("cost: give a price (bench report --price 2.10)")
    if unequal:
        texts.append("* after unequal training: do not compare")
    if texts:
        yield Note("; ".join(texts))


def _predictions(series: Sequence[SeriesFit], devices: Sequence[int]) -> Iterator[Block]:
    """Return the predicted speed of each series on numbers of devices, with 80 % intervals and limits."""
    rows, limits, details = [], dict[str, None](), list[str]()
    for one in series if devices else ():
        predicted = outlook(one, devices)
        details += [*time_sentences(predicted[-1]), *unidentified(one)]
        for prediction in predicted:
            words = flag_words(prediction.flags, one.host)
            limits |= dict.fromkeys(words)
            marks = "".join("abcdefghij"[list(limits).index(text)] for text in words if list(limits).index(text) < 10)
            rows.append((one.name if len(series) > 1 else "", *_prediction(prediction), f"({marks})" if marks else ""))
    if not rows:
        return
    first = 0 if len(series) > 1 else 1
    columns = ("series", "devices", "samples/s", "efficiency", "limits")[first:]
    cells = tuple(tuple(row[first:]) for row in rows)
    yield Table("Predicted by the law of scaling, 80 % intervals", columns, cells, words=("limits", columns[0]))
    yield from (Sentence(text, detail=True) for text in details)
    if limits:
        yield Note("; ".join(f"({mark}) {text}" for mark, text in zip("abcdefghij", limits, strict=False)), "Limits")


def _prediction(one: Outlook) -> tuple[str, str, str]:
    return f"{one.devices:,}", written(one.samples_per_second), written(one.efficiency.times(100), "%")


def _scaling(found: Found) -> Iterator[Block]:
    """Show the law: speed of one device by series and model, and the efficiency on more devices."""
    if not found.tested:
        return
    rows = []
    counts = sorted({point.devices for one in found.law.series for point in one.efficiency})
    for one in found.law.series:
        shares = {(point.curve, point.devices): point for point in one.efficiency}
        curves = list(dict.fromkeys(point.curve for point in one.efficiency)) or [""]
        speeds = [(size, size.v) for size in one.by_work]
        for place in range(max(len(speeds), len(curves))):
            size, v = speeds[place] if place < len(speeds) else (None, None)
            speed = "" if v is None else written(v.times(1e-9))
            curve = curves[place] if place < len(curves) else ""
            cells = [shares.get((curve, count)) for count in counts]
            rows.append(
                (
                    one.name if place == 0 else "",
                    "" if size is None else f"{size.flops_per_sample / 1e9:.3g}",
                    speed,
                    *("-" if p is None else written(p.times(100), "%") for p in cells),
                )
            )
    heads = ("series", "GFLOP per sample", "speed of one device, GFLOP/s")
    yield Table(
        "How it scales: time = work / (devices x speed of one device x efficiency)",
        (*heads, *(f"efficiency on {count}" for count in counts)),
        tuple(rows),
    )
    yield from (Note(text) for text in _unseen(found.law.series))


def _unseen(series: Sequence[SeriesFit]) -> Iterator[str]:
    """Say how well the law predicts configurations that it has not seen, beside one speed for all sizes."""
    errors = [(laws.left_out(one.observations()), one.left_out_median) for one in series]
    known = [(a, b) for a, b in errors if a is not None and b is not None]
    if known:
        law, plain = (_range(values) for values in zip(*known, strict=True))
        yield f"Unseen configurations are predicted within {law}. One speed for all would miss by {plain}."


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.2g}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low}-{high} %"


def _careful(own: pd.DataFrame, names: pd.DataFrame) -> str:
    """Say what was wrong with the measurements, and with how many."""
    if own.empty:
        return ""
    sets = [set(str(text).split()) for text in own["flags"]]
    texts = []
    for flag in sorted(set().union(*sets) - set(_GIVEN)):
        places = [place for place, flags in enumerate(sets) if flag in flags]
        phrase = _PHRASES.get(flag)
        who = f"{len(places)} of {len(own)} configurations"
        if len(places) == len(own):
            who = "all configurations" if len(own) > 1 else "it"
        elif len(places) == 1:
            who = ", ".join(filter(None, names.iloc[places[0]]))
        has = "has" if len(places) == 1 else "have"
        texts.append(f"{who} {has} {phrase}" if phrase else f"{who}: {meaning(flag)}")
    if (own["repeats"] < 2).any():
        texts.append("one repeat has no interval: run 3 or more")
    return "; ".join(texts)[:1].upper() + "; ".join(texts)[1:]


def _missing(runs: pd.DataFrame) -> str:
    """Say which runs did not end well, by reason."""
    bad = runs[runs["status"] != Status.OK]
    texts = []
    for (status, reason), same in bad.groupby(["status", "error_message"], sort=False, dropna=False):
        why = printable(reason, 200) if isinstance(reason, str) else "no reason was recorded"
        which = printable(same["label"].iloc[0], 120)
        count = f"{len(same)} run{'s' * (len(same) > 1)}"
        texts.append(
            f"{count} {str(status).replace('_', ' ')} ({which}{', ...' * (same['config_id'].nunique() > 1)}): {why}"
        )
    more = len(texts) - 2 * _MOST_NOTED
    return "; ".join([*texts[: 2 * _MOST_NOTED], *([f"and {more} more reasons"] if more > 0 else [])])


def _evidence(found: Found, own: pd.DataFrame) -> Iterator[str]:
    """Yield definitions and the evidence behind the answer."""
    if own.empty:
        return
    yield "Figures are geometric means over repeats with 95 % intervals; quality is a median, memory the largest peak."
    for series in found.law.series:
        head = f"{series.name}: " if len(found.law.series) > 1 else ""
        yield from (head + line for line in series_sentences(series))
    yield from answer.remarks(own)


def _next(df: pd.DataFrame, store: str | None, *, fitted: bool) -> Iterator[Commands]:
    """Return three commands to go on with."""
    suites = list(dict.fromkeys(df["suite"].dropna()))
    if len(suites) != 1 or not (df["status"] == Status.OK).any():
        return
    suite, where = printable(suites[0], 100), f" --store {store}" if store else ""
    most = int(df["devices"].max()) if df["devices"].notna().any() else 1
    more = f" --devices {2 * most},{4 * most}" if df["devices"].nunique() > 1 and fitted else ""
    yield Commands(
        (
            f"bench fit {suite}{more}{where}",
            f"bench advise {suite}{where}",
            f"bench report {suite} -o {suite}.html{where}",
        )
    )
