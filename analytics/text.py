"""Numbers, intervals and foreign text as people read them. Plain text, no markup."""

from __future__ import annotations

import math

from analytics.interval import MOST_REPEATS, Interval

_LARGE = 1e9
"""From here on numbers have an exponent."""
_TIMES = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"))


def printable(text: object, limit: int = 60) -> str:
    """Return text of unknown origin as one line of printable characters, cut at `limit`."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: float) -> str:
    """Print a number for people: four digits, no exponent from 0.0001 to a billion."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 1000 <= abs(value) < _LARGE else f"{value:.4g}"


def two_digits(value: float) -> str:
    """Print a rough number: `4.9`, `1,700`."""
    return number(float(f"{value:.2g}"))


def interval(value: float, low: float | None = None, high: float | None = None, unit: str = "") -> str:
    """Print a figure with the digits that its interval supports: `1.75 (1.72-1.79)`, `4.2 days (2.7-6.3)`.

    Half the interval has one or two digits (6 to 55 of the last place), a figure three at most. Figures whose interval spans
    more than a factor of 10 have two digits each, those without an interval three.
    """
    tail = f" {unit}" if unit else ""
    if low is None or high is None or low == high or not all(map(math.isfinite, (value, low, high))):
        return _three(value) + tail  # equal ends: it is exact
    if max(abs(value), abs(low), abs(high)) >= _LARGE:
        texts = [f"{x:.3g}" for x in (value, low, high)]
    elif 0 < 10 * low < high:
        texts = [_fixed(x, 1 - _size(x)) for x in (value, low, high)]
    else:
        largest = max(abs(value), abs(low), abs(high))
        places = min(math.ceil(math.log10(11 / max(high - low, 1e-300))), 2 - _size(largest))
        # An end keeps its sign: -5 is not 0 where the other end is 194.
        sizes = [max(places, -_size(x)) if abs(x) > largest / 1000 else places for x in (value, low, high)]
        texts = [_fixed(x, own) for x, own in zip((value, low, high), sizes, strict=True)]
    return f"{texts[0]}{tail} ({texts[1]}{'-' if low >= 0 else ' to '}{texts[2]})"


def percent(share: float, low: float | None = None, high: float | None = None) -> str:
    """Print a share, such as 0.86, with its interval: `86 % (80-93)`."""
    return interval(100 * share, low and 100 * low, high and 100 * high, "%")


def written(figure: Interval, unit: str = "") -> str:
    """Print a figure in the digits of its interval, see `interval`."""
    return interval(figure.value, figure.low, figure.high, unit)


def devices_words(count: int) -> str:
    """Print a number of devices: `1 device`, `64 devices`."""
    return counted(count, "device")


def _size(value: float) -> int:
    """The power of ten of the first digit: 2 for 345."""
    return math.floor(math.log10(abs(value))) if value else 0


def _fixed(value: float, places: int) -> str:
    """Print a number rounded to so many decimals; below 0 they are tens, hundreds and so on."""
    return f"{round(value, places) + 0.0:,.{max(places, 0)}f}"


def _three(value: float) -> str:
    """Print a number with three digits and no exponent from 0.0001 on; `-` where it is not finite."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 999.5 or abs(value) >= _LARGE else _fixed(value, 2 - _size(value))


def duration(seconds: float) -> str:
    """Print a time with two digits in the unit that suits it: `45 s`, `6.2 min`, `3.1 h`, `2.4 days`."""
    size, unit = next((pair for pair in _TIMES if seconds >= 2 * pair[0]), (1.0, "s"))
    return f"{two_digits(seconds / size)} {unit}"


def counted(count: int, noun: str) -> str:
    """Print a number of things: `1 run`, `1,200 runs`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def repeats_words(more: int) -> str:
    """Write in short how many more repeats would tell."""
    return f"+{counted(more, 'repeat')}" if more <= MOST_REPEATS else f"more than +{MOST_REPEATS} repeats"


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return the divisor and the unit with its SI prefix that suit a value: (1e12, "TFLOP/s") for 3.1e12 FLOP/s."""
    for power, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * power:
            return power, prefix + unit
    return 1.0, unit
