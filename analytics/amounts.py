"""Numbers as people write them: 7B, 30d, 8-512. Read here for the command line and the dashboard; loads nothing heavy."""

from __future__ import annotations

import re

from bench.errors import BadValue

MOST_DEVICES, MOST_OPTIONS = 1_000_000, 50
_SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_UNITS = {"w": 7 * 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def amount(text: str) -> float:
    """Read a number above 0: 7e9, or 7B with k, M, B or T for thousands to trillions. Raises ValueError."""
    found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)([kMBT]?)", text.strip())
    try:
        value = float(found[1]) * _SUFFIXES[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if not 1e-12 < value < 1e40:
        raise BadValue(f"{text!r} is no number above 0 such as 7e9 or 7B")
    return value


def seconds(text: str) -> float:
    """Read a time, 30d, 12h or 45m, as seconds. Raises ValueError."""
    number = re.fullmatch(r"[\d.]+(e\d+)?", text[:-1])
    if text[-1:] not in _UNITS or number is None or not amount(text[:-1]) < 1e9:
        raise BadValue(f"{text!r} is no time: give a number above 0 and w, d, h, m or s: 2w, 30d, 12h, 45m")
    return amount(text[:-1]) * _UNITS[text[-1]]


def counts(text: str) -> tuple[int, ...]:
    """Read numbers of devices: 8,64,512, or 8-512 for 8, 16, 32 ... 512. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        low, high = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if not 1 <= low <= high <= MOST_DEVICES:
            wanted = f"whole numbers from 1 to {MOST_DEVICES:,}: 8,64,512 or 8-512 (doubling)"
            raise BadValue(f"{text!r}: give {wanted}")
        found |= {low * 2**k for k in range(21) if low * 2**k < high} | {high}
    if len(found) > MOST_OPTIONS:
        raise BadValue(f"{len(found)} numbers of devices; at most {MOST_OPTIONS} are allowed")
    return tuple(sorted(found))


def known_training(text: str) -> dict[str, float]:
    """Read a known training: hours=3000,params=340e6,devices=8,speed=2e9. Raises BadValue."""
    names = ("hours", "params", "tokens", "devices", "speed")
    pairs = [part.partition("=") for part in text.split(",")]
    if any(name.strip() not in names or not value for name, _, value in pairs) or not text.startswith("hours="):
        raise BadValue(f"{text!r}: give hours=... and what else is known of {', '.join(names[1:])}")
    values = {name.strip(): amount(value) for name, _, value in pairs}
    if len(values) < len(pairs):
        raise BadValue(f"{text!r}: give each of {', '.join(values)} only once")
    return values
