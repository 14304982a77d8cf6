"""Fits of the scaling law and its predictions in words and tables. Plain text, no markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from analytics.judge.stats import LOSS, REACH
from analytics.law import law as laws
from analytics.law.outlook import CONTRADICTED, PARTS, Outlook, contradictions, outlook
from analytics.law.series import SERIES, Host, SeriesFit, Unit
from analytics.say.blocks import Block, Note, Sentence, Table
from analytics.say.names import grouped, spoken, word
from analytics.text import devices_words, number, percent, scale, written

FLAGS = {
    "beyond_this_machine": "more devices than this machine has",
    "beyond_measured_host": "more devices than were measured, and CPU devices share the cores of one host",
    "devices_not_identified": "only one number of devices was measured, so the effect of devices is unknown",
    "devices_beyond_reach": f"more than {REACH} times as many devices as were measured, so the law is only a guess",
    "devices_below_measured": "fewer devices than were measured",
    "work_outside_measured": "a model with more or less work per sample than the measured ones",
    "first_node_boundary": "several nodes, while all measured runs used one",
    "nodes_not_identified": "another number of nodes, whose effect these runs cannot separate from that of devices and batch",
    "batch_outside_measured": "a batch outside the measured range",
    "one_configuration": "only one configuration was measured, so the error of the law is unknown",
    "work_and_devices_confounded": "larger models ran on more devices, so the effects of size and of devices on v cannot be "
    "separated",
    "law_misses_measured": "the repeats vary so much that the law misses their mean by more than 15 %: it rests mostly on "
    "typical values",
    CONTRADICTED: "the law contradicts the measured efficiency",
    "some_without_repeats": "some configurations ran only once, so their noise is unknown",
}


def flag_words(flags: Iterable[str], host: Host | None) -> list[str]:
    """Return the limits that flags stand for, with the number of devices of the machine."""
    machine = f" ({host.devices})" if host is not None else ""
    return [FLAGS[flag] + machine * (flag == "beyond_this_machine") for flag in flags]


def series_names(series: Sequence[SeriesFit]) -> list[str]:
    """Name series by what differs between them: `bf16`, `fp32, recompute`; one alone by its precision."""
    keys = pd.DataFrame([one.keys for one in series], dtype="object")
    varying = [
        column for column in map(str, keys) if keys[column].astype("str").nunique() > 1 and column not in SERIES[:4]
    ]
    columns = [c for c in varying or ["precision"] if c in keys]
    if len(series) == 1 and keys.get("precision", pd.Series([None])).isna().all():
        return ["all runs"]
    names = [", ".join(filter(None, (word(c, row[c]) for c in columns))) for _, row in keys.iterrows()]
    return names if len({*names}) == len(names) else [one.name for one in series]


def law_blocks(series: Sequence[SeriesFit], models: Mapping[float, str]) -> Iterator[Block]:
    """Show the speed of one device by series and model, and the efficiency on more devices.

    `models` are the names of kinds of work by FLOP of a sample.
    """
    counts = sorted({point.devices for one in series for point in one.efficiency})
    names, several = series_names(series), _several(series, models)
    if several and not counts:
        wide = [{model_of(size.flops_per_sample, models): size.v for size in one.by_work} for one in series]
        heads = tuple(dict.fromkeys(model for speeds in wide for model in speeds))
        rows = [
            (name, *(written(speeds[model].times(1e-9)) if model in speeds else "-" for model in heads))
            for name, speeds in zip(names, wide, strict=True)
        ]
        yield Table("How it scales: GFLOP/s of one device", ("series", *heads), tuple(rows))
        return
    rows, units = [], {rate_unit(one.unit)[1]: None for one in series}
    for name, one in zip(names, series, strict=True):
        for place, size in enumerate(one.by_work):
            here = [point for point in one.efficiency if same_work(point.flops_per_sample, size.flops_per_sample)]
            shares = [[written(p.times(100), "%") for p in here if p.devices == count] for count in counts]
            work = [model_of(size.flops_per_sample, models)] if several else []
            divisor, unit = rate_unit(one.unit)
            speed = written(size.v.times(1 / divisor)) + f" {unit}" * (len(units) > 1)
            cells = (speed, *(", ".join(texts) or "-" for texts in shares))
            rows.append((name * (place == 0), *work, *cells))
    heads = ("series", *(["model"] if several else []), f"{' or '.join(units)} of one device")
    caption = "How it scales: time = work / (devices x speed of one device x efficiency)"
    yield Table(caption, (*heads, *(f"efficiency on {count}" for count in counts)), tuple(rows), words=heads[1:-1])
    yield from map(Note, unseen(series))
    costs = [
        (name, text)
        for name, one in zip(names, series, strict=True)
        if CONTRADICTED not in contradictions(one.law(), one.observations())
        for text in node_sentences(one.law())
    ]
    yield from (Note(f"{name}: {text}" if len(series) > 1 else text, "Across nodes") for name, text in costs)


def rate_unit(unit: Unit) -> tuple[float, str]:
    """Return by what to divide the speed of a series for people, and its unit."""
    return (1e9, "GFLOP/s") if unit == "FLOP" else (1.0, f"{unit}/s")


def _several(series: Sequence[SeriesFit], models: Mapping[float, str]) -> bool:
    """Whether kinds of work have to be named: series that are not counted in FLOP are of one kind each."""
    return len({*models.values()}) > 1 and any(one.unit == "FLOP" for one in series)


def model_of(flops: float, models: Mapping[float, str]) -> str:
    """Return the name of a kind of work by FLOP of a sample."""
    return next((name for known, name in models.items() if same_work(known, flops)), "")


def same_work(one: float, other: float) -> bool:
    """Whether two amounts of FLOP are those of one kind of work."""
    return abs(one / other - 1) < 0.005


def prediction_blocks(
    series: Sequence[SeriesFit], devices: Sequence[int], models: Mapping[float, str]
) -> Iterator[Block]:
    """Show the predicted speed of each series and model on numbers of devices, with 80 % intervals and limits.

    `models` are the names of kinds of work by FLOP of a sample.
    """
    rows, limits, details = [], list[tuple[str, list[str]]](), list[str]()
    sizes = [
        (
            ", ".join(filter(None, (model_of(size.flops_per_sample, models) * _several(series, models), name))),
            one,
            size,
        )
        for name, one in zip(series_names(series), series, strict=True)
        for size in one.by_work
    ]
    for name, one, size in sizes if devices else ():
        label = [name] * (len(sizes) > 1)  # a single series needs no name
        predicted = outlook(one, devices, size.flops_per_sample)
        if predicted[0].refused:
            yield Note(": ".join([*label, _refusal(one, size.flops_per_sample)]), "Not predicted")
            continue
        details += [f"{name}: {text}" for text in (*time_sentences(predicted[-1]), *unidentified(one))]
        for prediction in predicted:
            place = ", ".join([*label, devices_words(prediction.devices)])
            limits.append((place, flag_words(prediction.flags, one.host)))
            figures = written(prediction.samples_per_second), written(prediction.efficiency.times(100), "%")
            rows.append((name, f"{prediction.devices:,}", *figures))
    if rows:
        first = int(len(sizes) == 1)
        speed = " or ".join(dict.fromkeys("tokens/s" if one.unit == "tokens" else "samples/s" for one in series))
        columns = ("series", "devices", speed, "efficiency")[first:]
        yield Table("Predicted by the law of scaling, 80 % intervals", columns, tuple(row[first:] for row in rows))
        yield from (Sentence(text, detail=True) for text in details)
    if texts := [f"{text} ({who})" if len(limits) > 1 else text for text, who in grouped(limits)]:
        yield Note("; ".join(texts), "Limits")


def _refusal(fit: SeriesFit, work: float) -> str:
    """Say which measurement a law contradicts, so that nothing is predicted by it."""
    here = [point for point in fit.efficiency if same_work(point.flops_per_sample, work)]
    kept = (
        f"each of {devices_words(point.devices)} keeps {written(point.times(100), '%')} of its speed" for point in here
    )
    measured = "; ".join(kept) or "the speeds differ between numbers of devices"
    return f"{measured}, and the fitted law contradicts that. Find the cause, or measure again on a quiet machine."


def series_sentences(fit: SeriesFit) -> list[str]:
    """Say what v of a series is, how well the law holds, where it breaks, and what cannot be said."""
    count = len(fit.points)
    divisor, unit = scale(fit.v.value, "FLOP/s") if fit.unit == "FLOP" else rate_unit(fit.unit)
    over = f"over {count} configurations" if count > 1 else "from one configuration, so without an interval"
    first = f"The speed of one device is v = {written(fit.v.times(1 / divisor), unit)}, {over}"
    if fit.plain_v is not None:
        plain, prefix = scale(fit.plain_v, "")
        first += f", or about {number(fit.plain_v / plain)}{prefix} parameters × samples per second"
    return [first + ".", *_errors(fit), *_losses(fit), *_sizes(fit)]


def _errors(fit: SeriesFit) -> Iterator[str]:
    if fit.left_out_median is None or fit.left_out_max is None:
        yield "The error of the law T = n / (d · v) cannot be estimated: it takes two configurations or more."
        return
    worst = max(fit.points, key=lambda point: abs(point.error))
    seen, unseen_ = (
        f"{percent(median)} (median) and {percent(most)} at most"
        for median, most in ((fit.error_median, fit.error_max), (fit.left_out_median, fit.left_out_max))
    )
    where = f"{spoken(worst.name)}, {'longer' if worst.error > 0 else 'shorter'} than measured"
    yield f"With this one v, T = n / (d · v) misses the measured times by {seen} ({where}); unseen ones by {unseen_}."


def _losses(fit: SeriesFit) -> Iterator[str]:
    if len(fit.devices) == 1:
        where = devices_words(fit.devices[0])
        yield f"Runs on {where} only do not identify the effect of more devices: measure one more number of devices."
        return
    if not fit.efficiency:
        yield "Different numbers of devices ran different work, so the loss is not comparable."
        return
    kinds = " and ".join(sorted({point.scaling for point in fit.efficiency}, reverse=True))
    for devices, base in dict.fromkeys((point.devices, point.baseline_devices) for point in fit.efficiency):
        here = [point for point in fit.efficiency if (point.devices, point.baseline_devices) == (devices, base)]
        shares = ", ".join(f"{written(point.times(100), '%')} ({spoken(point.curve)})" for point in here)
        keeps = f"each keeps this share of its speed on {devices_words(base)} ({kinds} scaling)"
        yield f"On {devices_words(devices)} {keeps.replace('own scaling', 'unknown batches')}: {shares}."
    if fit.breaks_at is not None:
        yield f"The law breaks at {devices_words(fit.breaks_at)}: more than {percent(LOSS)} of the speed is lost."
    elif fit.loss == "none visible":
        yield f"Up to {devices_words(max(fit.devices))} no loss above {percent(LOSS)} is visible."
    else:
        yield f"More repeats are needed to decide whether more than {percent(LOSS)} is lost."


def _sizes(fit: SeriesFit) -> Iterator[str]:
    if "work_and_devices_confounded" in fit.flags:
        yield FLAGS["work_and_devices_confounded"].capitalize() + "."
    elif (effect := fit.size_effect) is not None:
        sizes = [(size.flops_per_sample, *scale(size.flops_per_sample, "FLOP")) for size in fit.by_work]
        small, large = (f"{number(flops / divisor)} {unit}" for flops, divisor, unit in (sizes[0], sizes[-1]))
        holds = "v depends on the work" if effect.excludes() else "no clear difference"
        holds = "without repeats of both, that may be noise" if effect.low is None else holds
        yield f"With {large} of work per sample v is {written(effect)} times that with {small}: {holds}."
    if "some_without_repeats" in fit.flags:
        yield "Some configurations ran only once, so their noise is unknown: run 3 repeats or more."


def time_sentences(prediction: Outlook) -> list[str]:
    """Say where the time of a step goes by the law; nothing where it has no parts."""
    parts = [f"{percent(round(share, 2))} {PARTS[name]}" for name, share in prediction.shares.items() if share >= 0.005]
    where = devices_words(prediction.devices)
    return [f"Estimated time of a step on {where}: {', '.join(parts)}."] if len(parts) > 1 else []


def node_sentences(law: laws.Fit) -> list[str]:
    """Say what a step across the boundary of a node costs by the law; nothing where no run used several nodes."""
    if law.measured["num_nodes"].max() == 1:
        return []
    if not law.tells_nodes:
        return [
            "What a step across nodes costs is not identified: run as many devices of a node on one node and on several, "
            "with the same batch a device."
        ]
    cost = written(law.parameters["latency"].times(100), "%")
    return [f"Each doubling of the nodes adds {cost} of the time that a device computes in a step (80 % interval)."]


def unidentified(series: SeriesFit) -> list[str]:
    """Say which parameters of the law the runs of a series do not identify."""
    words = PARTS | {"hiding": "overlapping communication with work"}
    names = [words[name] for name, parameter in series.law().parameters.items() if not parameter.identified]
    return [f"Not identified by these runs, so taken from typical values: {', '.join(names)}."] if names else []


def unseen(series: Sequence[SeriesFit]) -> list[str]:
    """Say how well the law predicts configurations that it has not seen, beside one speed for all."""
    errors = [(laws.left_out(one.observations()), one.left_out_median) for one in series]
    known = [(a, b) for a, b in errors if a is not None and b is not None]
    if not known:
        return []
    law, plain = (_ends(values) for values in zip(*known, strict=True))
    return [f"Unseen configurations are predicted within {law}; one speed for all would miss by {plain}."]


def _ends(shares: Sequence[float]) -> str:
    low, high = (number(round(100 * share, 1 if share < 0.1 else None)) for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low}-{high} %"
