"""What the meters of all vendors' GPUs share: reading, processes, and the choice of GPUs by environment variables."""

from __future__ import annotations

import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import psutil

from bench.meters.meter import INTERVAL, Meter, Reading
from bench.process import descends_from
from bench.schema import Gpu

LibraryErrors = type[Exception] | tuple[type[Exception], ...]


class UnavailableError(Exception):
    """The library of a vendor cannot be used here; the message says why."""


@dataclass
class OpenGpu:
    """A GPU that is read; `mode` is the scope of its sensor where that is not the GPU alone."""

    uuid: str
    handle: Any
    mode: str | None = None
    energy: bool = True
    power: bool = True


class GpuMeter(Meter):
    """Energy counter and power of some GPUs.

    `reason` says why nothing can be read, `unread` why single GPUs cannot be read, `doubts` why a counter is not used,
    `errors` counts failed reads.
    """

    components = ("gpu",)
    period = INTERVAL
    steps = True
    shut_down: ClassVar[str] = ""
    """Name of the function that leaves the library."""

    @classmethod
    def open(cls, argument: str, gpus: Sequence[str] | None) -> Self:
        """Return the meter of the GPUs with these UUIDs, or of all visible ones."""
        visible, _, reason = cls.list_gpus()
        meter = cls([gpu.uuid for gpu in visible] if gpus is None else gpus)
        meter.reason = (reason or meter.reason) if meter.reason else None
        return meter

    def __init__(self, uuids: Sequence[str]) -> None:
        self.errors = 0
        self.unread: dict[str, str] = {}
        self.doubts: dict[str, str] = {}
        self._devices: list[Any] = []
        self._library: Any = None
        self._supported: dict[tuple[str, str], bool] = {}
        try:
            self._library = self.start()
        except UnavailableError as error:
            self.reason = str(error)
            return
        for uuid in dict.fromkeys(uuids):  # a GPU named twice is one GPU
            try:
                self._devices.append(self._find(uuid))
            except self.failure(self._library) as error:
                self.unread[uuid] = f"{uuid}: {error}"
        self._verify(self._devices)
        for device in self._devices:
            if not (device.energy or device.power):
                self.unread.setdefault(device.uuid, f"{device.uuid} reports neither energy nor power")
        self._devices = [device for device in self._devices if device.energy or device.power]
        if not self._devices:
            self.reason = "; ".join(self.unread.values()) or "no GPU to read"

    @staticmethod
    @abstractmethod
    def failure(library: Any) -> LibraryErrors:
        """Return the errors of the vendor's library."""

    @staticmethod
    @abstractmethod
    def start() -> Any:
        """Import and initialise the library of the vendor. Raises UnavailableError."""

    @abstractmethod
    def _find(self, uuid: str) -> Any:
        """Return a GPU with what it supports. Raises the errors of the library."""

    def _verify(self, devices: Sequence[Any]) -> None:
        """Give up counters that cannot be right, with the reason in `doubts`."""
        return

    @abstractmethod
    def _values(self, device: Any) -> tuple[int | None, int | None, str]:
        """Return energy in µJ, power in mW, and what went wrong."""

    @abstractmethod
    def _queries(self, device: Any) -> dict[str, Callable[[], Any]]:
        """Return the queries of the conditions that are single numbers, by name."""

    def _more_conditions(self, device: Any) -> dict[str, Any]:
        """Return further conditions."""
        return {}

    @abstractmethod
    def _pids(self, device: Any) -> list[int]:
        """Return the ids of the compute processes on a GPU."""

    def read(self) -> list[Reading]:
        """Return one row for each GPU, with the time in the middle of the call."""
        rows = []
        for device in self._devices:
            before = time.monotonic_ns()
            energy_uj, power, trouble = self._values(device)
            t_ns = (before + time.monotonic_ns()) // 2
            if energy_uj is not None or power is not None:
                values = {"energy_uj": energy_uj, "power_mw": power, "mode": device.mode}
                rows.append(self.row("gpu", device.uuid, t_ns=t_ns, **values))
            if trouble:
                self.errors += 1
                rows.append(self.row("gpu", device.uuid, t_ns=t_ns, event="error", message=trouble))
        return rows

    def close(self) -> None:
        """Leave the library."""
        library, self._library, self._devices = self._library, None, []
        if library is not None:
            getattr(library, self.shut_down)()

    def _ask(self, query: Callable[[], Any]) -> Any:
        return ask(query, self.failure(self._library))

    def conditions(self, root_pid: int) -> list[Reading]:
        """Return an event row for each GPU; its message is JSON with the conditions of the readings.

        Clocks are in MHz, temperatures in °C, the enforced power limit in mW, used memory in bytes, and cumulative throttled
        time in nanoseconds by reason. `reasons` is the mask of clock event reasons. `own` counts compute processes below
        `root_pid`, `foreign` others, `unknown` those without a process here (in a container the driver may list pids of the
        host). What a GPU does not support has no key and is not queried again.
        """
        rows = []
        for device in self._devices:
            facts: dict[str, Any] = {}
            for name, query in self._queries(device).items():
                if self._supported.get((device.uuid, name), True):
                    value = self._ask(query)
                    self._supported.setdefault((device.uuid, name), value is not None)
                    facts |= {} if value is None else {name: int(value)}
            facts |= {**self._more_conditions(device), **_whose(self._pids(device), root_pid)}
            message = json.dumps(facts, separators=(",", ":"))
            rows.append(self.row("gpu", device.uuid, event="conditions", message=message))
        return rows


def ask(query: Callable[[], Any], failure: LibraryErrors) -> Any:
    """Return the answer, or None if this GPU does not support the query."""
    try:
        return query()
    except failure:
        return None


def _whose(pids: list[int], root_pid: int) -> dict[str, int]:
    kin = [descends_from(pid, root_pid) for pid in pids]
    return {"own": kin.count(True), "foreign": kin.count(False), "unknown": kin.count(None)}


def process_tree(pids: Collection[int]) -> set[int]:
    """Return this process, `pids`, and the children of these."""
    tree = {os.getpid(), *pids}
    for pid in (os.getpid(), *pids):
        try:
            tree |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        except psutil.Error:
            continue
    return tree


def process_name(pid: int) -> str:
    """Return name and id of a process; only the id if it does not exist here."""
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:
        return f"pid {pid}"


def visible_gpus(gpus: list[Gpu], variable: str | None, parent: Callable[[str], str | None]) -> list[Gpu]:
    """Return the GPUs that a variable shows: those up to the first invalid entry, and none if an entry repeats.

    `parent` returns the UUID of the GPU that contains a slice (MIG).
    """
    if variable is None:
        return gpus
    chosen: list[Gpu] = []
    seen: set[str] = set()
    for entry in (part.strip() for part in variable.split(",")):
        if entry.isdecimal():
            matches = [gpu for gpu in gpus if gpu.index == int(entry)]
        elif entry.startswith("GPU-"):
            matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        elif entry.startswith("MIG-"):
            matches = [gpu for gpu in gpus if gpu.uuid == parent(entry)]
        else:
            matches = []
        if len(matches) != 1:
            break
        if entry in seen or (matches[0] in chosen and not entry.startswith("MIG-")):
            return []
        seen.add(entry)
        if matches[0] not in chosen:  # two slices of one GPU are one device to read
            chosen.append(matches[0])
    return chosen
