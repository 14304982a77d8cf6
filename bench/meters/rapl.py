"""CPU packages and their DRAM through Intel RAPL in /sys/class/powercap (AMD CPUs publish their packages there too).

A container sees them only where they are mounted: the variable WATTBENCH_POWERCAP names another place of that folder.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.meters.trace import Component, Reading

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class _Zone:
    path: Path
    component: Component
    wrap_uj: int | None


class RaplMeter:
    """The energy counters of all packages and of the DRAM beside them.

    DRAM is a child folder of its package, yet not inside its energy: both are added. `core` and `uncore` are inside the
    package, `psys` contains it, and `intel-rapl-mmio` is the same zones once more: none of these is read. Zones are
    known by path, as names repeat. `reason` says why nothing can be read.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = root or Path(os.environ.get("WATTBENCH_POWERCAP") or POWERCAP)
        self.errors = 0
        self.reason: str | None = None
        self._zones = _zones(root)
        if not self._zones:
            self.reason = f"no RAPL package in {root}: not offered by this machine (usual in virtual machines)"
            return
        rows = self.read()
        unread = {row.device for row in rows if row.event is not None}
        if any(str(zone.path) in unread and zone.component == "cpu" for zone in self._zones):
            # One package out of two would be taken for the machine's CPU energy.
            self._zones = []
            self.reason = (
                f"{root}/intel-rapl:*/energy_uj is readable by root only (since CVE-2020-8694); "
                "an administrator can allow it with chmod a+r, or a udev rule that lasts"
            )
        self._zones = [zone for zone in self._zones if str(zone.path) not in unread]

    def read(self) -> list[Reading]:
        """Return a row for each zone; one that cannot be read gives an event row."""
        rows = []
        for zone in self._zones:
            energy: int | None = None
            message = ""
            try:
                energy = int((zone.path / "energy_uj").read_text())
            except (OSError, ValueError) as error:
                self.errors += 1
                message = str(error)
            rows.append(
                Reading(
                    t_ns=time.monotonic_ns(),
                    wall_ns=time.time_ns(),
                    source="rapl",
                    component=zone.component,
                    device=str(zone.path),
                    energy_uj=energy,
                    wrap_uj=zone.wrap_uj,
                    event="error" if message else None,
                    message=message or None,
                )
            )
        return rows

    def close(self) -> None:
        """Nothing is held open."""


def _zones(root: Path) -> list[_Zone]:
    """Return packages and DRAM, each real folder once."""
    names = {path: _text(path / "name") for path in sorted(root.glob("intel-rapl:*"))}
    zones: dict[Path, _Zone] = {}
    for path, name in names.items():
        parent = path.with_name(path.name.rpartition(":")[0])
        component: Component
        if name.startswith("package"):
            component = "cpu"
        elif name == "dram" and names.get(parent, "").startswith("package"):
            component = "dram"
        else:
            continue
        wrap = _text(path / "max_energy_range_uj")
        zones.setdefault(path.resolve(), _Zone(path, component, int(wrap) if wrap.isdecimal() else None))
    return list(zones.values())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
