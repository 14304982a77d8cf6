"""Estimates by CodeCarbon of what cannot be measured: the CPU from load and TDP, memory from its size; never GPUs.

Estimates are kept apart from measurements everywhere. CodeCarbon may use no network, no files, no configuration and no
carbon factor. Only its energy totals are used: its mean powers and durations are not reliable.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from bench.meters.meter import Component, Meter, Reading

STALE_SECONDS = 0.06
"""CodeCarbon's flush() measures nothing within 50 ms of the last one."""
MICROJOULES_PER_KWH = 3.6e12


class _Totals:
    """The output handler that receives CodeCarbon's totals: energy in kWh since the start."""

    kwh: tuple[float, float] | None = None

    def out(self, total: Any, delta: Any) -> None:
        self.kwh = (total.cpu_energy, total.ram_energy)

    def live_out(self, total: Any, delta: Any) -> None: ...

    def task_out(self, data: Any, experiment_name: str) -> None: ...

    def exit(self) -> None: ...


class CodecarbonMeter(Meter):
    """CodeCarbon's cumulative energy of CPU and memory, for the whole machine.

    It starts in a thread, which takes about two seconds. Until then `read` returns nothing; `reason` says why the start
    failed. All reads must come from one thread. The constructor removes CodeCarbon's settings from this process, including
    its working folder and HOME. So use it in a process of its own, with absolute paths.
    """

    source = "codecarbon"
    components = ("cpu", "dram")
    nature = "estimated"
    scope = "machine"

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
    def starting(self) -> bool:  # type: ignore[override]  # it is read only
        """Whether it is still starting."""
        return self._starter.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait until it has started, for at most this many seconds; return whether it has."""
        self._starter.join(seconds)
        return not self.starting

    def read(self) -> list[Reading]:
        """Return a row for each component with its energy until now; no rows while it starts or if that failed."""
        if self.starting or self.reason is not None:
            return []
        time.sleep(max(0.0, self._flushed + STALE_SECONDS - time.monotonic()))
        self._flushed = time.monotonic()
        self._totals.kwh = None
        t_ns = time.monotonic_ns()
        self._tracker.flush()
        kwh: tuple[float, float] | None = self._totals.kwh
        if kwh is None:  # flush() suppresses all errors; then it did not call the handler
            self.errors += 1
            return [self.row("cpu", "cpu", t_ns=t_ns, event="error", message="flush() failed")]
        rows = []
        for component, energy in zip(self.components, kwh, strict=True):
            if component in self._modes:
                device, mode = self._modes[component]
                microjoules = round(energy * MICROJOULES_PER_KWH)
                rows.append(self.row(component, device, t_ns=t_ns, energy_uj=microjoules, mode=mode))
        return rows

    def close(self) -> None:
        """Stop CodeCarbon's background threads, without waiting for one that is still starting."""
        if not self.starting and self._tracker is not None:
            self._tracker.stop()

    def _start(self) -> None:
        try:
            self._start_tracker()
        except ImportError:
            self.reason = "the package codecarbon is not installed"
        except Exception as error:  # noqa: BLE001  a failed estimate must not stop anything
            self.reason = f"CodeCarbon did not start: {error!r}"

    def _start_tracker(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").setLevel(logging.ERROR)  # `log_level` has no effect during the constructor
        self._tracker = OfflineEmissionsTracker(
            output_methods=[],
            output_handlers=[self._totals],
            measure_power_secs=1e9,  # never on its own: two threads would count an interval twice
            api_call_interval=-1,
            gpu_ids=[],
            tracking_mode="machine",
            allow_multiple_runs=True,  # otherwise it replaces signal handlers and refuses a second process
            pue=1.0,
            wue=0.0,
            force_carbon_intensity_g_co2e_kwh=0.0,  # carbon is computed elsewhere; this also avoids the network
            electricitymaps_api_token="",
            emissions_endpoint=False,
            log_level="error",
        )
        self._tracker.start()
        # Constructor, start() and flush() suppress all errors, so look at what they left.
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
    """Return device and mode of each estimated component; modes of the CPU are `cpu_load`, `constant`, ..."""
    modes: dict[Component, tuple[str, str]] = {}
    for item in hardware:
        kind = type(item).__name__
        if kind == "CPU":
            modes["cpu"] = ("cpu", str(item._mode))
        elif kind == "RAM":
            modes["dram"] = ("ram", "memory_size")
    return modes


def _forget_settings() -> None:
    """Remove CodeCarbon's variables, and leave the home and working folder where it looks for a configuration.

    Also remove those of a job of Slurm: CodeCarbon would take the processors of all its nodes for those of this one.
    """
    for name in list(os.environ):
        if name.lower().startswith("codecarbon_") or name in ("SLURM_JOB_ID", "SLURM_JOBID"):
            del os.environ[name]
    os.environ["HOME"] = "/"
    os.chdir("/")


def main() -> None:
    """Print one line of JSON: component, mode and watts of what CodeCarbon estimates now, or why it cannot."""
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
