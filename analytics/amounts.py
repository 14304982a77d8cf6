"""Numbers as people write them: 7B, 1,000,000, 30d, $20k, 8xH100. Read for options, pages and tables; loads nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from bench.errors import BadValue

MOST_DEVICES, MOST_OPTIONS = 1_000_000, 50
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_TIMES = {
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
}
_SPACES = " \u00a0\u2009\u202f"
_WRITTEN = re.compile(
    rf"(?P<digits>[+-]?(?:\d(?:[{_SPACES}'’.,]?\d)*\.?|\.\d+))(?P<power>e[+-]?\d+)?"
    rf"(?:(?P<suffix>[kmbt])(?![a-z]))?[{_SPACES}]*(?P<unit>.*)",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_GROUPS = re.compile(rf"[+-]?[1-9]\d{{0,2}}(?:(?P<by>[{_SPACES}'’.,])\d{{3}})(?:(?P=by)\d{{3}})*", re.ASCII)
_OTHER = {".": ",", ",": "."}


class Written(NamedTuple):
    """A number as it is written: its digits with what separates them, the suffix of thousands, and the unit behind it."""

    digits: str
    power: str
    suffix: str
    unit: str

    @property
    def decimal(self) -> str:
        """Return which of . and , begins the fraction; "" where nothing does, or where it may group digits as well.

        Raises ValueError for digits that no rule makes.
        """
        marks = [c for c in self.digits if c in _OTHER]
        if not marks:
            return ""
        last = marks[-1]
        if len(set(marks)) == 1 and not self.power and _GROUPS.fullmatch(self.digits):
            return _OTHER[last] if len(marks) > 1 else ""  # 1.234.567 has groups; 11.216 may be a fraction
        if marks.count(last) > 1 or marks[:-1].count(last):
            raise BadValue(f"{self.digits!r} is not a number: its digits are not in groups of three")
        return last

    def value(self, decimal: str = ".") -> float:
        """Return the number; a mark that is not `decimal` groups its digits. Raises ValueError where it does not."""
        whole, mark, fraction = self.digits.partition(decimal)
        separated = re.sub(r"[\d+-]", "", whole)
        if (separated and not _GROUPS.fullmatch(whole)) or not re.fullmatch(r"\d*", fraction, re.ASCII):
            raise BadValue(f"{self.digits!r} is not a number: a fraction begins with {decimal!r} here")
        text = re.sub(r"[^\d+-]", "", whole) + ("." if mark else "") + fraction + self.power
        return float(text) * _SUFFIXES[self.suffix.lower()]

    def rounding(self, decimal: str = ".") -> float:
        """Return half a unit of the last digit: 0.05 for 1.2, 500 for 47k."""
        places = len(self.digits.partition(decimal)[2])
        power = int(self.power[1:]) if self.power else 0
        return float(0.5 * 10.0 ** (power - places) * _SUFFIXES[self.suffix.lower()])


def written(text: str) -> Written | None:
    """Return the parts of a number with what is behind it; None for text that does not begin with a number."""
    parts = _WRITTEN.fullmatch(text.strip())
    return parts and Written(parts["digits"], parts["power"] or "", parts["suffix"] or "", parts["unit"].strip())


def amount(text: str, units: Mapping[str, float] | None = None) -> float:
    """Read a number above 0: 7e9, 1,000,000, or 7B with k, M, B or T for thousands to trillions. Raises ValueError.

    `units` are those that may follow it, in small letters, each with its factor.
    """
    units = {"": 1.0, **(units or {})}
    parts, value = written(text), 0.0
    unit = parts.unit.lower() if parts else None
    if parts and unit in units:
        try:
            value = parts.value() * units[unit]
        except ValueError:
            if "," in text:
                raise BadValue(
                    f"{text!r}: a point begins a fraction, commas group three digits: 1.5, 1,000,000"
                ) from None
    if value >= 1e40:
        raise BadValue(f"{text!r} cannot be meant: it is too large")
    if not value > 1e-12:
        wanted = f", and perhaps {' or '.join(filter(None, units))}" if len(units) > 1 else ""
        raise BadValue(f"{text!r} is no number above 0 such as 7e9 or 7B{wanted}")
    return value


def length(text: str) -> float:
    """Read a number of tokens, such as 4096. Raises ValueError, also for 4k: lengths are often powers of two."""
    parts, value = written(text), amount(text)
    if parts and parts.suffix:
        raise BadValue(f"{text!r} may be {round(value):,} or {round(value * 1.024):,}: write the number in full")
    return value


def usd(text: str) -> float:
    """Read an amount of money in USD: 20000, $20k, 20k usd. Raises ValueError."""
    plain = re.sub(r"^(us)?\s*\$|^usd\b|(us)?\$$", "", text.strip(), flags=re.IGNORECASE)
    if re.search(r"[€£¥₹]|(?<![a-z])(eur|euros?|gbp|chf|jpy|cny|cad|aud|inr)\b", plain, re.IGNORECASE):
        raise BadValue(f"{text!r}: prices are in USD; convert it first")
    plain = re.sub(r"(?<=[\dkmbt])\s*(usd|dollars?)$", "", plain.strip(), flags=re.IGNORECASE)
    return amount(plain)


_PER = {"hour": r"((gpu|device)[- ]?)?(h|hr|hour)", "kWh": "kwh"}


def usd_per(unit: Literal["hour", "kWh"]) -> Callable[[str], float]:
    """Return the reader of a price per hour or per kWh, which refuses one per something else."""

    def price(text: str) -> float:
        price_text, slash, per = text.partition("/")
        if slash and not re.fullmatch(_PER[unit], per.strip(), re.IGNORECASE):
            raise BadValue(f"{text!r}: this price is in USD per {unit}")
        return 0.0 if re.fullmatch(r"\s*0+(\.0+)?\s*", price_text) else usd(price_text)

    return price


def seconds(text: str) -> float:
    """Read a time, 30d, 3 weeks, 1d12h or 45m, as seconds. Raises ValueError."""
    parts = re.findall(r"\s*([\d.,]+(?:e\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    whole = re.fullmatch(r"(\s*[\d.,]+(?:e\d+)?\s*[a-z]+\s*)+", text, re.IGNORECASE)
    factors = [_TIMES.get(unit.lower(), 0.0) for _, unit in parts]
    if whole is None or 0.0 in factors or sorted(set(factors), reverse=True) != factors:
        months = ": months differ in length" if re.search(r"\d\s*(mo|months?|y|years?)\b", text, re.IGNORECASE) else ""
        raise BadValue(
            f"{text!r} is no time{months}: give a number above 0 and w, d, h, m or s: 2w, 30d, 3 weeks, 1d12h, 45m"
        )
    values = [amount(figure) for figure, _ in parts]
    if not max(values) < 1e9:
        raise BadValue(f"{text!r} is no time that can be meant")
    return sum(value * factor for value, factor in zip(values, factors, strict=True))


class Hardware(NamedTuple):
    """Devices as people name them: `8xH100`, `2x8 H100`, `16 GPUs`, `1 node x 8`. `name` is "" where it is not told."""

    devices: int
    nodes: int | None
    name: str


_TIMES_SIGN = r"\s*[x×*]\s*"
_UNIT = r"(?:gpus?|devices?|accelerators?|chips?|cards?)"
_HARDWARE = re.compile(
    rf"(?:(?P<nodes>\d+)\s*(?:nodes?)?{_TIMES_SIGN}(?=\d))?(?P<devices>\d+)"
    rf"(?:{_TIMES_SIGN}|\s*\b(?=[a-z])|(?<=\d)$|\s+|$)(?P<name>.*)",
    re.ASCII | re.IGNORECASE,
)
_NAME_FIRST = re.compile(
    r"(?P<name>[a-z][\w .+()/-]*?)(?:(?<=\d)x|\s+[x×*]\s*)(?P<devices>\d+)(?P<nodes>)", re.ASCII | re.IGNORECASE
)
"""H100x8; RTX4090 is no number of devices."""


def hardware(text: str) -> Hardware | None:
    """Read devices with their number; None for text that is none. Raises ValueError for numbers that cannot be meant."""
    parts = _HARDWARE.fullmatch(text.strip()) or _NAME_FIRST.fullmatch(text.strip())
    if parts is None:
        return None
    name = re.sub(rf"^{_UNIT}$|\s+{_UNIT}$|^{_UNIT}\s+(?=\S)", "", parts["name"].strip(), flags=re.IGNORECASE)
    if name and not re.fullmatch(r"[a-z][\w .+()/-]*", name, re.IGNORECASE | re.ASCII):
        return None
    if re.fullmatch(r"[kmbt]|nodes?", name, re.IGNORECASE):
        return None
    nodes, each = int(parts["nodes"]) if parts["nodes"] else None, int(parts["devices"])
    if not 1 <= each * (nodes or 1) <= MOST_DEVICES or nodes == 0:
        raise BadValue(f"{text!r}: give 1 to {MOST_DEVICES:,} devices")
    return Hardware(each * (nodes or 1), nodes, name)


def counts(text: str) -> tuple[int, ...]:
    """Read numbers of devices: 8,64,512, or 8-512 for 8, 16, 32 ... 512. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([1-9]\d{0,8})\s*(?:-\s*([1-9]\d{0,8})\s*)?", part, re.ASCII)
        low, high = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= low <= high <= MOST_DEVICES:
            wanted = f"whole numbers from 1 to {MOST_DEVICES:,} without groups of digits: 8,64,512 or 8-512 (doubling)"
            raise BadValue(f"{text!r}: give {wanted}")
        found |= {low * 2**k for k in range(21) if low * 2**k < high} | {high}
    if len(found) > MOST_OPTIONS:
        raise BadValue(f"{len(found)} numbers of devices; at most {MOST_OPTIONS} are allowed")
    return tuple(sorted(found))


def counts_on(text: str) -> tuple[tuple[int, ...], str]:
    """Read numbers of devices as `counts` does, or 8xH100; return them with the name, "" without. Raises ValueError."""
    parts = hardware(text) if re.search(r"[a-z×*]", text, re.IGNORECASE) else None
    return ((parts.devices,), parts.name) if parts is not None else (counts(text), "")


def known_training(text: str) -> dict[str, float]:
    """Read a known training: hours=3000,params=340e6,devices=8,speed=2e9. Raises BadValue."""
    names = ("hours", "params", "tokens", "devices", "speed")
    # A comma before a name separates; others group digits.
    pairs = [part.partition("=") for part in re.split(r",(?=\s*[A-Za-z_])", text)]
    if any(name.strip() not in names or not value for name, _, value in pairs) or not text.startswith("hours="):
        raise BadValue(f"{text!r}: give hours=... and what else is known of {', '.join(names[1:])}")
    values = {name.strip(): amount(value) for name, _, value in pairs}
    if len(values) < len(pairs):
        raise BadValue(f"{text!r}: give each of {', '.join(values)} only once")
    return values


_BUDGETS = {
    "usd": ("cost_usd", 1.0),
    "$": ("cost_usd", 1.0),
    "wh": ("energy_joules", 3.6e3),
    "kwh": ("energy_joules", 3.6e6),
    "mwh": ("energy_joules", 3.6e9),
    "g": ("emissions_kg", 1e-3),
    "kg": ("emissions_kg", 1.0),
    "t": ("emissions_kg", 1e3),
}


def budget(text: str) -> tuple[str, float]:
    """Read a limit, 50usd, 10kWh, 5kg (of CO2e) or 12h, as a quantity (`cost_usd`, `energy_joules` ...) and its amount.

    Raises BadValue.
    """
    parts = re.fullmatch(r"\s*(\$?)\s*([\d.,]+[kMBT]?)\s*([A-Za-z]*)\s*", text)
    unit = (parts[1] or parts[3]).lower() if parts and not (parts[1] and parts[3]) else ""
    if parts and unit in _BUDGETS:
        quantity, size = _BUDGETS[unit]
        return quantity, amount(parts[2]) * size
    with suppress(ValueError):
        return "seconds", seconds(text.strip())
    raise BadValue(f"{text!r} is no budget: give 50usd, 10kWh, 5kg (of CO2e) or 12h")
