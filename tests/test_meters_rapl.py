import os

import pytest

from bench.meters.rapl import RaplMeter
from bench.meters.trace import Trace

WATTS = {"package-0": 100, "package-1": 120, "dram": 20, "core": 60, "uncore": 5, "psys": 400}


class Powercap:
    """A tree like /sys: real folders under devices, and a flat folder of links to them."""

    def __init__(self, folder, zones):
        self.root = folder / "class" / "powercap"
        self.root.mkdir(parents=True)
        self.zones = {}
        for identifier, name in zones.items():
            parent, _, number = identifier.rpartition(":")
            place = folder / "devices" / identifier.partition(":")[0]
            if ":" in parent:
                place = place / parent
            zone = place / identifier
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text("262143328850\n")
            (self.root / identifier).symlink_to(os.path.relpath(zone, self.root))
            self.zones[identifier] = zone
            self.set(identifier, 10**9 + int(number) * 10**8 + len(self.zones) * 10**7)
        (self.root / "intel-rapl").symlink_to(folder / "devices" / "intel-rapl")

    def set(self, identifier, microjoules):
        (self.zones[identifier] / "energy_uj").write_text(f"{microjoules}\n")

    def run(self, seconds):
        for zone in self.zones.values():
            watts = WATTS[(zone / "name").read_text().strip()]
            energy = int((zone / "energy_uj").read_text()) + watts * seconds * 1_000_000
            (zone / "energy_uj").write_text(f"{energy % 262143328850}\n")


SERVER = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0:0": "core",
    "intel-rapl:0:1": "dram",
    "intel-rapl:1": "package-1",
    "intel-rapl:1:0": "uncore",
    "intel-rapl:1:1": "dram",
    "intel-rapl:2": "psys",
    "intel-rapl-mmio:0": "package-0",
    "intel-rapl-mmio:0:0": "dram",
}


def record(meter, powercap, monkeypatch, seconds=range(31)):
    """Read once a second of a clock that we turn."""
    rows = []
    for second in seconds:
        monkeypatch.setattr("bench.meters.meter.time.monotonic_ns", lambda now=second: now * 10**9)
        rows += meter.read()
        powercap.run(1)
    return Trace(rows)


def test_packages_and_dram_are_added_and_nothing_else(tmp_path, monkeypatch):
    powercap = Powercap(tmp_path, SERVER)
    meter = RaplMeter(powercap.root)
    readings = record(meter, powercap, monkeypatch).energy(0, 30 * 10**9)
    watts = {r.device.rpartition("/")[2]: (r.component, r.power_watts_mean) for r in readings}
    assert watts == {
        "intel-rapl:0": ("cpu", 100),
        "intel-rapl:0:1": ("dram", 20),
        "intel-rapl:1": ("cpu", 120),
        "intel-rapl:1:1": ("dram", 20),
    }
    assert sum(r.power_watts_mean for r in readings) == 260
    assert (meter.reason, meter.errors) == (None, 0)


def test_a_zone_that_is_linked_twice_is_one_zone(tmp_path):
    powercap = Powercap(tmp_path, {"intel-rapl:0": "package-0"})
    (powercap.root / "intel-rapl:9").symlink_to(powercap.root / "intel-rapl:0")
    assert [row.device for row in RaplMeter(powercap.root).read()] == [str(powercap.root / "intel-rapl:0")]


def test_mirrored_dies_count_once(tmp_path, monkeypatch):
    powercap = Powercap(tmp_path, {"intel-rapl:0": "package-0", "intel-rapl:1": "package-0"})
    powercap.set("intel-rapl:0", 10**9)
    powercap.set("intel-rapl:1", 10**9 + 20_000)
    trace = record(RaplMeter(powercap.root), powercap, monkeypatch)
    assert [r.power_watts_mean for r in trace.energy(0, 20 * 10**9)] == [100]


def test_the_range_of_the_counter_travels_with_it(tmp_path, monkeypatch):
    powercap = Powercap(tmp_path, {"intel-rapl:0": "package-0"})
    powercap.set("intel-rapl:0", 262143328850 - 500_000_000)
    trace = record(RaplMeter(powercap.root), powercap, monkeypatch)
    assert min(row.energy_uj for row in trace.rows) < 10**9 < max(row.energy_uj for row in trace.rows)
    (reading,) = trace.energy(0, 30 * 10**9)
    assert reading.power_watts_mean == 100


def test_a_dram_zone_without_a_package_is_not_guessed(tmp_path):
    powercap = Powercap(tmp_path, {"intel-rapl:0": "dram", "intel-rapl:1": "psys", "intel-rapl:1:0": "dram"})
    assert "no RAPL package" in RaplMeter(powercap.root).reason


def test_no_powercap_has_a_reason(tmp_path):
    meter = RaplMeter(tmp_path / "missing")
    assert "no RAPL package" in meter.reason
    assert meter.read() == []


@pytest.mark.parametrize("zone", ["intel-rapl:0", "intel-rapl:1"])
def test_an_unreadable_package_leaves_no_partial_cpu_energy(tmp_path, zone):
    powercap = Powercap(tmp_path, SERVER)
    hide(powercap, zone)
    meter = RaplMeter(powercap.root)
    assert "readable by root only" in meter.reason
    assert "chmod a+r" in meter.reason
    assert meter.read() == []


def test_an_unreadable_dram_zone_is_left_out(tmp_path):
    powercap = Powercap(tmp_path, SERVER)
    hide(powercap, "intel-rapl:1:1")
    meter = RaplMeter(powercap.root)
    assert meter.reason is None
    assert [row.device.rpartition("/")[2] for row in meter.read()] == ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"]


def test_an_error_later_on_is_an_event(tmp_path):
    powercap = Powercap(tmp_path, {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1"})
    meter = RaplMeter(powercap.root)
    hide(powercap, "intel-rapl:0")
    event, row = meter.read()
    assert (event.event, event.energy_uj, meter.errors) == ("error", None, 1)
    assert row.energy_uj == 1_120_000_000


def hide(powercap, zone):
    """Make a counter unreadable, for root too: root reads whatever the mode says, so chmod would not do."""
    path = powercap.zones[zone] / "energy_uj"
    path.unlink()
    path.mkdir()
