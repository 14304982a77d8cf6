"""Fits of the scaling law and its predictions in words. Plain text, no markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from analytics.interval import Interval
from analytics.judge.matched import Change
from analytics.judge.stats import LOSS, REACH, SAME
from analytics.law import law as laws
from analytics.law.outlook import PARTS, Outlook
from analytics.law.series import Efficiency, Host, ScalingFit, SeriesFit
from analytics.law.step_time import step_time
from analytics.text import between, bounded, devices_words, number, scale

FLAGS = {
    "beyond_this_machine": "more devices than this machine has",
    "beyond_measured_host": "more devices than were measured, and CPU devices share the cores of one host",
    "devices_not_identified": "only one number of devices was measured, so the effect of devices is unknown",
    "devices_beyond_reach": f"more than {REACH} times as many devices as were measured, so the law is only a guess",
    "devices_below_measured": "fewer devices than were measured",
    "work_outside_measured": "a model with more or less work per sample than the measured ones",
    "first_node_boundary": "several nodes, while all measured runs used one",
    "batch_outside_measured": "a batch outside the measured range",
    "one_configuration": "only one configuration was measured, so the error of the law is unknown",
    "work_and_devices_confounded": "larger models ran on more devices, so the effects of size and of devices on v cannot be "
    "separated",
    "some_without_repeats": "some configurations ran only once, so their noise is unknown",
}


LAW = (
    "The law is T = n / (d · v): time = work / (devices × measured speed of one device). T is the steady time of training, "
    "without start-up.",
    "Intervals are 95 %. The interval of v is the spread of the configurations around one law: its errors and noise.",
)


def flag_words(flags: Iterable[str], host: Host | None) -> list[str]:
    """Return the limits that flags stand for, with the number of devices of the machine."""
    machine = f" ({host.devices})" if host is not None else ""
    return [FLAGS[flag] + machine * (flag == "beyond_this_machine") for flag in flags]


def fit_sentences(fit: ScalingFit) -> list[str]:
    """Say what was found: in short, then the law, then series by series."""
    if not fit.series:
        return [
            "There is nothing to fit: no run ended well, or the work of a sample (FLOP) is unknown. "
            "Run some with: bench run suites/scaling.yaml"
        ]
    lines = [*in_short(fit.series), *LAW]
    for series in fit.series:
        head = f"{series.name}: " if len(fit.series) > 1 else ""
        lines += [head + line for line in series_sentences(series)]
    return lines


def in_short(series: Sequence[SeriesFit]) -> list[str]:
    """Say in one sentence what the most devices bring; no sentence where there are no repeats to tell it."""
    line = headline(series)
    return [f"In short: {line}"] if line else []


def headline(series: Sequence[SeriesFit]) -> str:
    """Say what the most devices bring, without more ado; nothing where there are no repeats to tell it."""
    said = [line for fit in series if (line := _brings(fit))]
    return f"{'; '.join(said)}." if said else ""


def _brings(fit: SeriesFit) -> str:
    """Say what the most devices bring, as a mean over the curves; nothing where no repeats tell how sure that is.

    Half-widths on logarithms add in quadrature: the runs of each curve are its own.
    """
    most = max((point.devices for point in fit.efficiency), default=0)
    here = [
        (p, p.low, p.high) for p in fit.efficiency if p.devices == most and p.low is not None and p.high is not None
    ]
    if not here or len({p.baseline_devices for p, *_ in here}) > 1:
        return ""
    base = here[0][0].baseline_devices
    gain = most / base * math.exp(math.fsum(math.log(p.value) for p, *_ in here) / len(here))
    half = math.exp(math.hypot(*(math.log(high / low) / 2 for _, low, high in here)) / len(here))
    devices = f"{base} device" + ("s" if base > 1 else "")
    if gain / half <= 1 <= gain * half:
        return f"{fit.name}: whether {most} devices train faster than {devices} cannot be told from these runs"
    return f"{fit.name}: {most} devices train {between(gain, gain / half, gain * half)} times as fast as {devices}"


def series_sentences(fit: SeriesFit) -> list[str]:
    """Say what v of a series is, how well the law holds, where it breaks, and what cannot be said."""
    count = len(fit.points)
    divisor, unit = scale(fit.v.value, "FLOP/s")
    over = f"over {count} configurations" if count > 1 else "from one configuration, so without an interval"
    first = f"The speed of one device is v = {bounded(fit.v.times(1 / divisor), unit)}, {over}"
    if fit.plain_v is not None:
        plain, prefix = scale(fit.plain_v, "")
        first += f", or about {number(fit.plain_v / plain)}{prefix} parameters × samples per second"
    lines = [first + ".", *_law_sentences(fit), *_device_sentences(fit), *_work_sentences(fit)]
    if "some_without_repeats" in fit.flags:
        lines.append("Some configurations ran only once, so their noise is unknown: run 3 repeats or more.")
    return lines


def _law_sentences(fit: SeriesFit) -> list[str]:
    if fit.left_out_median is None or fit.left_out_max is None:
        return ["The error of the law T = n / (d · v) cannot be estimated: it takes two configurations or more."]
    worst = max(fit.points, key=lambda point: abs(point.error))
    return [
        f"With this one v, T = n / (d · v) misses the measured times by {_percent(fit.error_median)} (median) and "
        f"{_percent(fit.error_max)} at most ({worst.name}, {'longer' if worst.error > 0 else 'shorter'} than measured).",
        f"For an unseen configuration it misses by {_percent(fit.left_out_median)} (median) and "
        f"{_percent(fit.left_out_max)} at most (each left out once).",
    ]


def _device_sentences(fit: SeriesFit) -> list[str]:
    if len(fit.devices) == 1:
        where = devices_words(fit.devices[0])
        return [f"Runs on {where} only do not identify the effect of more devices: measure one more number of devices."]
    if not fit.efficiency:
        return ["Different numbers of devices ran different work, so the loss is not comparable."]
    kept = {"weak": "the batch per device", "strong": "the batch of all devices together"}
    kinds = sorted({point.scaling for point in fit.efficiency}, reverse=True)
    lines = [f"This is {' and '.join(kinds)} scaling: {' or '.join(kept[kind] for kind in kinds)} is constant."]
    for devices, base in dict.fromkeys((point.devices, point.baseline_devices) for point in fit.efficiency):
        here = [point for point in fit.efficiency if (point.devices, point.baseline_devices) == (devices, base)]
        lines.append(f"{_kept(devices, base)}{', '.join(map(_share, here))}.")
    if fit.breaks_at is not None:
        lines.append(
            f"The law breaks at {devices_words(fit.breaks_at)}: more than {_percent(LOSS)} of the speed is lost."
        )
    elif fit.loss == "none visible":
        lines.append(f"Up to {devices_words(max(fit.devices))} no loss above {_percent(LOSS)} is visible.")
    else:
        lines.append(f"More repeats are needed to decide whether more than {_percent(LOSS)} is lost.")
    return lines


def _kept(devices: int, base: int) -> str:
    return f"On {devices_words(devices)} each keeps this share of its speed on {devices_words(base)}: "


def _share(point: Efficiency) -> str:
    return f"{bounded(point.times(100), '%')} ({point.curve})"


def _work_sentences(fit: SeriesFit) -> list[str]:
    if "work_and_devices_confounded" in fit.flags:
        return [FLAGS["work_and_devices_confounded"].capitalize() + "."]
    if fit.size_effect is None:
        return []
    sizes = [(size.flops_per_sample, *scale(size.flops_per_sample, "FLOP")) for size in fit.by_work]
    small, large = (f"{number(flops / divisor)} {unit}" for flops, divisor, unit in (sizes[0], sizes[-1]))
    ratio = bounded(fit.size_effect)
    return [f"With {large} of work per sample v is {ratio} times that with {small}: {_holds(fit.size_effect)}."]


def _holds(effect: Interval) -> str:
    if effect.low is None or effect.high is None:
        return "without repeats of both, that may be noise"
    if effect.low <= 1 <= effect.high:
        return "no clear difference"
    return "v depends on the work"


def precision_sentences(changes: Iterable[Change]) -> list[str]:
    """Say how much faster each precision is than its baseline, all else equal; a range where cells disagree."""
    return [_precision(change) for change in changes if change.topic.name == "precision" and change.found("time")]


def _precision(change: Change) -> str:
    speed, verdict = change.ratio("time").inverse(), change.verdict("time")
    cells = f"{len(change.cells)} configuration" + ("s" if len(change.cells) > 1 else "")
    times = f"{bounded(speed)} times ({cells})"
    if ends := [f"{number(1 / cost.value)} times ({name})" for name, cost in change.range("time")]:
        times = f"{' to '.join(reversed(ends))} of {cells}"
    if verdict == "cannot tell":
        why = "the interval holds 1" if speed.low is not None else "it takes repeats of both"
        why = "chance explains it among so many comparisons" if speed.excludes() else why
        why = "the configurations disagree" if ends else why
        return f"Whether {change.option} is faster than {change.baseline} cannot be told: {times}, but {why}."
    words = {"better": "faster", "worse": "slower", "equivalent": f"as fast, within {_percent(SAME)}"}[verdict]
    return (
        f"{change.option} is {words} than {change.baseline}: {times}."
        if verdict != "equivalent"
        else (f"{change.option} is {words}, as {change.baseline}: {times}.")
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def time_sentences(prediction: Outlook) -> list[str]:
    """Say where the time of a step goes by the law; nothing where it has no parts."""
    parts = [f"{100 * share:.0f} % {PARTS[name]}" for name, share in prediction.shares.items() if share >= 0.005]
    where = devices_words(prediction.devices)
    return [f"Estimated time of a step on {where}: {', '.join(parts)}."] if len(parts) > 1 else []


def unidentified(series: SeriesFit) -> list[str]:
    """Say which parameters of the law the runs of a series do not identify."""
    words = PARTS | {"hiding": "overlapping communication with work"}
    names = [words[name] for name, parameter in series.law().parameters.items() if not parameter.identified]
    return [f"Not identified by these runs, so taken from typical values: {', '.join(names)}."] if names else []


def unseen_sentences(series: SeriesFit) -> list[str]:
    """Say how well the law predicts configurations that it was not fitted to, beside the plain law."""
    error = laws.left_out(series.observations())
    if error is None or series.left_out_median is None:
        return []
    plain = f"T = n / (d · v) misses them by {_percent(series.left_out_median)}"
    return [f"Unseen configurations are predicted within {_percent(error)} (median, each left out once); {plain}."]


def step_sentences(table: pd.DataFrame) -> list[str]:
    """Say what takes the time of a step over many configurations of a summary that divide the model."""
    steps = step_time(table)
    if steps is None:
        return []
    shares = ", ".join(f"{100 * x:.0f} % {name.replace('_', ' ')}" for name, x in steps.shares.items() if x >= 0.005)
    return [
        f"A step takes on average {shares}, over {steps.configurations} configurations. An unseen one is predicted within "
        f"{_percent(steps.left_out)} (one speed for all: {_percent(steps.plain_left_out)})."
    ]
