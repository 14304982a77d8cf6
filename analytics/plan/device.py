"""Devices by the names that people use: peak speed by precision, power limit, memory, devices in a node.

Peaks stand in one table, that of `bench.figures.metrics.peak_flops`; `data/devices.csv` says which of its names a short name
means, and adds the vendor's power limit and the memory. No device stands in for another one: H100-PCIe is not H100-SXM.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from analytics.text import printable
from bench.errors import BadValue
from bench.figures.metrics import peak_flops

PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "fp8")


@dataclass(frozen=True)
class Device:
    """A kind of accelerator. `family` names the prior that applies to it; `device_name` is what its driver calls it.

    `watts` is the vendor's limit of the device alone, `memory_bytes` its memory, `per_node` how many usually share a
    node; None where that is not known. `peak` [FLOP/s, dense] is there where the user gave it.
    """

    name: str
    family: str = ""
    device_name: str = ""
    watts: float | None = None
    memory_bytes: float | None = None
    per_node: int = 8
    source: str = ""
    peak: float | None = None

    def peak_flops(self, precision: str) -> float:
        """Return the dense peak in FLOP/s. Raises ValueError where it is not known for this precision."""
        found = self.peak if self.peak is not None else peak_flops(self.device_name, precision)
        if found is None:
            known = [name for name in PRECISIONS if peak_flops(self.device_name, name) is not None]
            what = f"known are {', '.join(known)}" if known else "none is known"
            raise BadValue(f"no peak of {printable(self.name)} in {printable(precision)}: {what}; give --peak-flops")
        return found


def _key(name: str) -> str:
    """Reduce a name to what tells devices apart: no vendor, no punctuation, no case."""
    return re.sub(r"nvidia|geforce|tesla|amd|instinct|[^a-z0-9]", "", name.lower())


@cache
def _table() -> tuple[tuple[Device, frozenset[str]], ...]:
    rows = csv.DictReader(resources.files("analytics").joinpath("data/devices.csv").read_text().splitlines())
    return tuple(
        (
            Device(
                row["name"],
                row["family"],
                row["device_name"],
                float(row["watts"]) if row["watts"] else None,
                float(row["memory_gb"]) * 1e9,
                int(row["per_node"]),
                row["watts_source"],
            ),
            frozenset(map(_key, (row["name"], row["device_name"], *row["aliases"].split()))),
        )
        for row in rows
    )


def devices() -> tuple[Device, ...]:
    """Return all devices of the table."""
    return tuple(device for device, _ in _table())


def find(name: str) -> Device:
    """Return the device of a name, short or the driver's. Raises ValueError for one that is unknown or that several have."""
    key = _key(name)
    found = [device for device, keys in _table() if key in keys]
    if len(found) == 1:
        return found[0]
    several = [device.name for device, keys in _table() if key and any(known.startswith(key) for known in keys)]
    if several:
        raise BadValue(f"device {printable(name)!r} may be {' or '.join(several)}: say which")
    # A near name may be a typing error, or another device: H800 is not H200.
    near = difflib.get_close_matches(name.upper(), [device.name for device in devices()], 4, 0.5)
    hint = f"near names: {', '.join(near)}" if near else f"it has {', '.join(device.name for device in devices())}"
    raise BadValue(
        f"unknown device {printable(name)!r}: it is not in the table; give --peak-flops and --power-watts ({hint})"
    )


def same(name: str, device: Device) -> bool:
    """Say whether a device that runs name, short or as the driver does, is this one."""
    try:
        return name in (device.name, device.device_name) or find(name).device_name == device.device_name
    except ValueError:
        return False
