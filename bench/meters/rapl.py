"""CPU packages and their DRAM through Intel RAPL in /sys/class/powercap; AMD CPUs publish their packages there too.

A container sees this folder only if it is mounted; the variable WATTBENCH_POWERCAP names another place for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.meters.meter import Component, Meter, Reading

POWERCAP = Path("/sys/class/powercap")


def powercap() -> Path:
    """Return the folder of the zones."""
    return Path(os.environ.get("WATTBENCH_POWERCAP") or POWERCAP)


@dataclass(frozen=True)
class _Zone:
    path: Path
    component: Component
    wrap_uj: int | None


class RaplMeter(Meter):
    """The energy counters of all packages and of their DRAM.

    DRAM is a child folder of its package, but its energy is not part of the package's: both are added. `core` and `uncore`
    are parts of the package, `psys` contains it, and `intel-rapl-mmio` repeats the zones: none of these is read. Zones are
    identified by path because names repeat. `reason` says why nothing can be read.
    """

    source = "rapl"
    components = ("cpu", "dram")
    period = 0.5  # its counter is always up to date; at this rate the edges of a window of some seconds are accurate
    always_moves = True
    mirrored = True

    def __init__(self, root: Path | None = None) -> None:
        root = root or powercap()
        self.errors = 0
        self._zones = _zones(root)
        if not self._zones:
            self.reason = f"no RAPL package in {root}: this machine does not offer it (usual in virtual machines)"
            return
        rows = self.read()
        unread = {row.device for row in rows if row.event is not None}
        if any(str(zone.path) in unread and zone.component == "cpu" for zone in self._zones):
            # One package of two would be mistaken for the CPU energy of the machine.
            self._zones = []
            self.reason = (
                f"{root}/intel-rapl:*/energy_uj is readable by root only (since CVE-2020-8694); "
                "an administrator can allow it with chmod a+r, or permanently with a udev rule"
            )
        self._zones = [zone for zone in self._zones if str(zone.path) not in unread]

    def read(self) -> list[Reading]:
        """Return one row for each zone, or an event row if it cannot be read."""
        rows = []
        for zone in self._zones:
            values: dict[str, object] = {"wrap_uj": zone.wrap_uj}
            try:
                values["energy_uj"] = int((zone.path / "energy_uj").read_text())
            except (OSError, ValueError) as error:
                self.errors += 1
                values |= {"event": "error", "message": str(error)}
            rows.append(self.row(zone.component, str(zone.path), **values))
        return rows


def zone_names(root: Path) -> dict[Path, str]:
    """Return all zones in a folder with their names; a name that cannot be read is empty."""
    return {path: _text(path / "name") for path in sorted(root.glob("intel-rapl*:*"))}


def _zones(root: Path) -> list[_Zone]:
    """Return packages and DRAM; a folder with several links counts once."""
    names = zone_names(root)
    zones: dict[Path, _Zone] = {}
    for path, name in names.items():
        parent = names.get(path.with_name(path.name.rpartition(":")[0]), "")
        dram = name == "dram" and parent.startswith("package")
        if path.name.startswith("intel-rapl:") and (dram or name.startswith("package")):
            wrap = _text(path / "max_energy_range_uj")
            zone = _Zone(path, "dram" if dram else "cpu", int(wrap) if wrap.isdecimal() else None)
            zones.setdefault(path.resolve(), zone)
    return list(zones.values())


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
