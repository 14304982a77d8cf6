"""What cannot be measured, estimated by CodeCarbon: CPU from load and TDP, memory from its size. It is given no GPUs.

Estimates are kept apart from measurements everywhere. CodeCarbon is held to this machine: no network, no files, no
configuration, no carbon factor; only its energy totals are used (its mean powers and durations are not reliable).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from bench.meters.trace import Component, Reading

STALE_SECONDS = 0.06
"""CodeCarbon's flush() measures nothing within 50 ms of the last time."""
MICROJOULES_PER_KWH = 3.6e12


class _Totals:
    """The output handler that CodeCarbon hands its totals to: energy in kWh since the start."""

    kwh: tuple[float, float] | None = None

    def out(self, total: Any, delta: Any) -> None:
        self.kwh = (total.cpu_energy, total.ram_energy)

    def live_out(self, total: Any, delta: Any) -> None: ...

    def task_out(self, data: Any, experiment_name: str) -> None: ...

    def exit(self) -> None: ...


class CodecarbonMeter:
    """CodeCarbon's cumulative energy of CPU and memory, for the whole machine.

    Starting takes about two seconds and goes on in a thread: `read` returns nothing until it is done, and `reason` says
    why it did not end well. All reads must come from one thread. Making one takes CodeCarbon's settings out of this
    process, its working folder and HOME included: make it in a process of its own, which uses absolute paths.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.reason: str | None = None
        self._totals = _Totals()
        self._modes: dict[Component, tuple[str, str]] = {}
        self._tracker: Any = None
        self._flushed = 0.0
        _forget_settings()
        self._starter = threading.Thread(target=self._start, daemon=True)
        self._starter.start()

    @property
    def starting(self) -> bool:
        """Whether the start is still going on."""
        return self._starter.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for the start, at most so long; return whether it is over."""
        self._starter.join(seconds)
        return not self.starting

    def read(self) -> list[Reading]:
        """Let CodeCarbon estimate up to now; return a row for each component, none while it starts or if it failed."""
        if self.starting or self.reason is not None:
            return []
        time.sleep(max(0.0, self._flushed + STALE_SECONDS - time.monotonic()))
        self._flushed = time.monotonic()
        self._totals.kwh = None
        t_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        self._tracker.flush()
        kwh: tuple[float, float] | None = self._totals.kwh
        if kwh is None:  # flush() swallows all errors; then it has not reached the handler
            self.errors += 1
            return [Reading(t_ns=t_ns, wall_ns=wall_ns, source="codecarbon", event="error", message="flush() failed")]
        components: tuple[Component, ...] = ("cpu", "dram")
        return [
            Reading(
                t_ns=t_ns,
                wall_ns=wall_ns,
                source="codecarbon",
                component=component,
                device=self._modes[component][0],
                energy_uj=round(energy * MICROJOULES_PER_KWH),
                mode=self._modes[component][1],
            )
            for component, energy in zip(components, kwh, strict=True)
            if component in self._modes
        ]

    def close(self) -> None:
        """Stop CodeCarbon's background threads; a start that still goes on is not waited for."""
        if not self.starting and self._tracker is not None:
            self._tracker.stop()

    def _start(self) -> None:
        try:
            self._start_tracker()
        except ImportError:
            self.reason = "the package codecarbon is not installed"
        except Exception as error:  # noqa: BLE001  an estimate that fails, however it does, stops nothing
            self.reason = f"CodeCarbon did not start: {error!r}"

    def _start_tracker(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.ERROR)  # `log_level` comes too late for the constructor
        self._tracker = OfflineEmissionsTracker(
            output_methods=[],
            output_handlers=[self._totals],
            measure_power_secs=1e9,  # never by itself: two threads that measure count an interval twice
            api_call_interval=-1,
            gpu_ids=[],
            tracking_mode="machine",
            allow_multiple_runs=True,  # else it replaces signal handlers and refuses a second process
            pue=1.0,
            wue=0.0,
            force_carbon_intensity_g_co2e_kwh=0.0,  # carbon is made elsewhere; this also keeps it off the network
            electricitymaps_api_token="",
            emissions_endpoint=False,
            log_level="error",
        )
        self._tracker.start()
        # Constructor, start() and flush() swallow all errors: what is there afterwards is what tells.
        if getattr(self._tracker, "_external_conf", None) != {}:
            self.reason = "CodeCarbon found a configuration of its own"
        elif getattr(self._tracker, "_start_time", None) is None:
            self.reason = "CodeCarbon did not start"
        else:
            self._modes = _modes(self._tracker._hardware)
            self._tracker.flush()  # the first one imports pandas
            self._flushed = time.monotonic()
            if self._totals.kwh is None or not self._modes:
                self.reason = "CodeCarbon estimates nothing on this machine"


def _modes(hardware: Sequence[Any]) -> dict[Component, tuple[str, str]]:
    """Return device and mode of what is estimated: `intel_rapl`, `cpu_load`, `constant`, ... for the CPU."""
    modes: dict[Component, tuple[str, str]] = {}
    for item in hardware:
        kind = type(item).__name__
        if kind == "CPU":
            modes["cpu"] = ("cpu", str(item._mode))
        elif kind == "RAM":
            modes["dram"] = ("ram", "memory_size")
    return modes


def _forget_settings() -> None:
    """Take CodeCarbon's settings away: its variables, and the home and working folder where it looks for a file."""
    for name in list(os.environ):
        if name.lower().startswith("codecarbon_"):
            del os.environ[name]
    os.environ["HOME"] = "/"
    os.chdir("/")


def main() -> None:
    """Print as one line of JSON what CodeCarbon estimates now: component, mode and watts, or the reason why not."""
    meter = CodecarbonMeter()
    meter.wait(60)
    before = meter.read()
    time.sleep(0.3)
    after = meter.read()
    estimates = [
        {
            "component": first.component,
            "mode": first.mode,
            "power_watts": (last.energy_uj - first.energy_uj) * 1e3 / (last.t_ns - first.t_ns),
        }
        for first, last in zip(before, after, strict=False)
        if first.energy_uj is not None and last.energy_uj is not None
    ]
    reason = meter.reason or ("" if estimates else "CodeCarbon estimated nothing")
    meter.close()
    print(json.dumps({"reason": reason, "estimates": estimates}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
