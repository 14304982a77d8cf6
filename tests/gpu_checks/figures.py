"""Figures of the checks, made from numbers alone: plan of the time, histograms, intervals, duty, rise times."""

import math
from bisect import bisect_right
from collections import Counter
from functools import cache
from itertools import pairwise
from statistics import mean, median, stdev


def plan(costs, budget):
    """Return seconds for each check that fits: `costs` are (least, full) by name, the most important first.

    A check whose least no longer fits is left out, and a cheaper one after it may still fit. What remains of the budget
    is shared: every check gets the same share of its way from least to full.
    """
    chosen, total = [], 0.0
    for name, (least, _) in costs.items():
        if total + least <= budget:
            chosen.append(name)
            total += least
    room = sum(costs[name][1] - costs[name][0] for name in chosen)
    share = min(1.0, (budget - total) / room) if room > 0 else 0.0
    return {name: costs[name][0] + share * (costs[name][1] - costs[name][0]) for name in chosen}


def percentile(values, percent):
    """Return the smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def summary(values, digits=6):
    """Summarise values: count, extremes and percentiles."""
    if not values:
        return {"n": 0}
    figures = {f"p{p}": round(percentile(values, p), digits) for p in (5, 50, 95, 99)}
    return {"n": len(values), "min": round(min(values), digits), **figures, "max": round(max(values), digits)}


def histogram(values, width):
    """Count values in bins of a width: the lower end of a bin, as text, to its count."""
    counts = Counter(math.floor(value / width) for value in values)
    return {f"{bin_number * width:g}": counts[bin_number] for bin_number in sorted(counts)}


def changes(readings):
    """Return the (time, value) readings that differ from the one before."""
    return [b for a, b in pairwise(readings) if a[1] != b[1]]


def falls(readings):
    """Count the readings that are smaller than the one before."""
    return sum(b[1] < a[1] for a, b in pairwise(readings))


def hold_mean(samples, t0, t1):
    """Return the mean from t0 to t1 of (time, value) samples that each hold until the next; None where none is known."""
    times = [t for t, _ in samples]
    first = bisect_right(times, t0) - 1
    if first < 0 or t1 <= t0:
        return None
    total = 0.0
    for i in range(first, len(samples)):
        begin = max(t0, times[i])
        end = min(t1, times[i + 1]) if i + 1 < len(samples) else t1
        if begin >= t1:
            break
        total += samples[i][1] * (end - begin)
    return total / (t1 - t0)


def duty(bursts, t0, t1):
    """Return the share of the time from t0 to t1 that lies in (start, end) bursts, which do not overlap."""
    busy = sum(max(0, min(end, t1) - max(start, t0)) for start, end in bursts)
    return busy / (t1 - t0)


def at_duty(power, low, real, wanted):
    """Return the power that a wave would have had, had its duty been `wanted` instead of `real`; `low` is its floor."""
    return low + (power - low) * wanted / real


def spread(values):
    """Return (largest - smallest) / mean."""
    return (max(values) - min(values)) / mean(values)


def variation(values):
    """Return standard deviation / mean."""
    return stdev(values) / mean(values)


def rise_seconds(samples, start, end):
    """Return the seconds in which (ns, value) samples rise from 10 to 90 % of a step at `start`; None without a step.

    The floor is the median of the 300 ms before the step, the top that of the last 300 ms before `end`.
    """
    before = [value for t, value in samples if start - 300_000_000 <= t < start]
    after = [value for t, value in samples if end - 300_000_000 <= t < end]
    if not before or not after:
        return None
    low, high = median(before), median(after)
    if high - low < 0.1 * abs(high):
        return None
    crossed = [
        next((t for t, value in samples if start <= t < end and value >= low + share * (high - low)), None)
        for share in (0.1, 0.9)
    ]
    return None if None in crossed else (crossed[1] - crossed[0]) / 1e9


@cache
def t_quantile(degrees, probability):
    """Return the quantile of Student's t for a probability from 0.5: found by bisection of its integral."""
    factor = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)

    def below(x, steps=400):
        # Simpson's rule from 0 to x
        def density(u):
            return factor * (1 + u * u / degrees) ** (-(degrees + 1) / 2)

        h = x / steps
        inner = sum((4 if i % 2 else 2) * density(i * h) for i in range(1, steps))
        return 0.5 + h / 3 * (density(0) + inner + density(x))

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2


def abba(times):
    """Return the ratio B / A of times measured in the order A B B A, A B B A, ...: (ratio, low, high) at 95 %.

    Each four make one paired difference of logarithms, free of a linear drift; the interval is Student's t on those.
    """
    blocks = [times[i : i + 4] for i in range(0, len(times) - 3, 4)]
    if len(blocks) < 2:
        raise ValueError(f"an interval takes two blocks of four times or more, not {len(times)} times")
    logs = [(math.log(b1) + math.log(b2) - math.log(a1) - math.log(a2)) / 2 for a1, b1, b2, a2 in blocks]
    centre, half = mean(logs), t_quantile(len(logs) - 1, 0.975) * stdev(logs) / math.sqrt(len(logs))
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)
