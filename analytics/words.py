"""Figures and fits in words that a newcomer understands, for terminal and dashboard alike. Plain text, no markup."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analytics.stats import LOSS, MOST_REPEATS, REACH, SAME, Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analytics.scaling import Efficiency, Gain, ScalingFit, SeriesFit

FLAGS = {
    "devices_not_identified": "only one number of devices was measured: nothing is known about any other",
    "devices_beyond_reach": f"more than {REACH} times as many devices as were measured: the law is only a guess there",
    "devices_below_measured": "fewer devices than were measured",
    "work_outside_measured": "a model with more or less work per sample than those measured",
    "first_node_boundary": "several nodes, while all that was measured ran in one",
    "batch_outside_measured": "a batch outside those measured",
    "nodes_not_identified": "one number of nodes only: what going to several nodes costs is not known",
    "work_not_identified": "one size of model only: what size does is not known",
    "few_configurations": "few configurations: the parts are rough",
    "one_configuration": "one configuration only: how well the law holds is not known",
    "work_and_devices_confounded": "larger models ran on more devices, so what size does and what devices do to v "
    "cannot be told apart",
    "some_without_repeats": "some configurations ran once only, so their noise is not known",
}

LAW = (
    "The law is T = n / (d · v): time = work / (devices × what one device really does). T is the steady time of "
    "training, without starting up.",
    "Intervals are 95 %. That of v is the spread of the configurations around one law: what the law leaves out, and "
    "noise.",
)


def printable(text: object, limit: int = 60) -> str:
    """Return text of unknown origin as one line of printable characters, cut at `limit`."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: float) -> str:
    """Print a number for people: four digits, no exponent from 0.0001 to a billion."""
    if not math.isfinite(value):
        return "-"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def between(value: float, low: float | None, high: float | None, unit: str = "") -> str:
    """Print a number with its interval: `12.3 (12 to 12.7) J`; without one, `12.3 J`."""
    tail = f" {unit}" if unit else ""
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        return number(value) + tail
    return f"{number(value)} ({number(low)} to {number(high)}){tail}"


def repeats_words(more: int) -> str:
    """Write in short how many more repeats would tell."""
    return f"+{more} repeats" if more <= MOST_REPEATS else f"more than +{MOST_REPEATS} repeats"


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return the divisor and the unit with its SI prefix that suit a value: (1e12, "TFLOP/s") for 3.1e12 FLOP/s."""
    for power, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return power, prefix + unit
    return 1.0, unit


def fit_sentences(fit: ScalingFit) -> list[str]:
    """Say what was found: in short, then the law, then series by series, then what precision gains."""
    if not fit.series:
        return [
            "There is nothing to fit: no run ended well, or none says how much work (FLOP) a sample takes. "
            "Make some with: bench run suites/scaling.yaml"
        ]
    lines = [*in_short(fit.series), *LAW]
    for series in fit.series:
        head = f"{series.name}: " if len(fit.series) > 1 else ""
        lines += [head + line for line in series_sentences(series)]
    return lines + [gain_sentence(gain) for gain in fit.gains]


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
    divisor, unit = scale(fit.v, "FLOP/s")
    low, high = (bound and bound / divisor for bound in (fit.v_low, fit.v_high))
    over = f"over {count} configurations" if count > 1 else "from one configuration, so without interval"
    first = f"One device really does v = {between(fit.v / divisor, low, high, unit)}, {over}"
    if fit.plain_v is not None:
        plain, prefix = scale(fit.plain_v, "")
        first += (
            f"; counted in parameters instead of FLOP that is about {number(fit.plain_v / plain)}{prefix} parameters × "
            "samples a second"
        )
    lines = [first + ".", *_law_sentences(fit), *_device_sentences(fit), *_work_sentences(fit)]
    if "some_without_repeats" in fit.flags:
        lines.append("Some configurations ran once only, so their noise is not known: ask for 3 repeats or more.")
    return lines


def _law_sentences(fit: SeriesFit) -> list[str]:
    if fit.left_out_median is None or fit.left_out_max is None:
        return ["How well the law T = n/(d·v) holds cannot be said: it takes two configurations or more."]
    worst = max(fit.points, key=lambda point: abs(point.error))
    return [
        f"The law T = n/(d·v) with this one v misses the measured times by {_percent(fit.error_median)} (median) and "
        f"{_percent(fit.error_max)} at most ({worst.name}, {'longer' if worst.error > 0 else 'shorter'} than it took).",
        f"For a configuration that it has not seen it misses by {_percent(fit.left_out_median)} (median) and "
        f"{_percent(fit.left_out_max)} at most (each left out once).",
    ]


def _device_sentences(fit: SeriesFit) -> list[str]:
    if len(fit.devices) == 1:
        return [
            f"Only d = {fit.devices[0]} was measured, so what more devices bring cannot be said (not identified): "
            "measure one more number of devices."
        ]
    if not fit.efficiency:
        return ["Different numbers of devices ran different work, so what they lose cannot be said (not comparable)."]
    kept = {"weak": "the batch per device", "strong": "the batch of all devices together"}
    ways = " or ".join(kept[kind] for kind in sorted({point.scaling for point in fit.efficiency}, reverse=True))
    lines = [f"Comparing devices, {ways} stays the same ({fit.scaling} scaling)."]
    for devices, base in dict.fromkeys((point.devices, point.baseline_devices) for point in fit.efficiency):
        here = [point for point in fit.efficiency if (point.devices, point.baseline_devices) == (devices, base)]
        shares = ", ".join(f"{_percents(point)} ({point.curve})" for point in here)
        lines.append(f"At d = {devices} each device does this much of what it does at d = {base}: {shares}.")
    if fit.breaks_at is not None:
        lines.append(f"The law breaks at d = {fit.breaks_at}: more than {_percent(LOSS)} of the speed is lost there.")
    elif fit.loss == "none visible":
        lines.append(f"Up to d = {max(fit.devices)} no loss above {_percent(LOSS)} is visible.")
    else:
        lines.append(
            f"Whether more than {_percent(LOSS)} is lost cannot be told from these runs: it takes more repeats."
        )
    return lines


def _percents(point: Efficiency) -> str:
    low, high = (None if bound is None else 100 * bound for bound in (point.low, point.high))
    return between(100 * point.value, low, high, "%")


def _work_sentences(fit: SeriesFit) -> list[str]:
    if "work_and_devices_confounded" in fit.flags:
        return [FLAGS["work_and_devices_confounded"].capitalize() + "."]
    if fit.size_effect is None:
        return []
    sizes = [(size.flops_per_sample, *scale(size.flops_per_sample, "FLOP")) for size in fit.by_work]
    small, large = (f"{number(flops / divisor)} {unit}" for flops, divisor, unit in (sizes[0], sizes[-1]))
    effect = fit.size_effect
    times = between(effect.value, effect.low, effect.high)
    return [f"With {large} of work a sample v is {times} times what it is with {small}: {_holds(effect)}."]


def _holds(effect: Estimate) -> str:
    if effect.low is None or effect.high is None:
        return "without repeats of both, that may be noise"
    if effect.low <= 1 <= effect.high:
        return "no difference can be told"
    return "v depends on the work"


def gain_sentence(gain: Gain) -> str:
    """Say what a precision gains and how sure that is."""
    times = between(gain.ratio, gain.low, gain.high)
    pairs = f"{gain.configurations} configuration" + ("s" if gain.configurations > 1 else "")
    where = f"{gain.where}, {pairs}"
    if gain.verdict == "cannot tell":
        why = "the interval holds 1" if gain.low is not None else "it takes repeats of both"
        either = f"Whether {gain.precision} is faster than {gain.baseline} cannot be told"
        return f"{either}: {times} times ({where}), but {why}."
    words = {"same": f"as fast, within {_percent(SAME)}"}.get(gain.verdict, gain.verdict)
    return f"{gain.precision} is {times} times as fast as {gain.baseline} ({where}): {words}."


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"
