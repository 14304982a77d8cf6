"""The meter sidecar: reads all meters of a node and appends their rows to a file, in a process of its own.

`python -P -m bench.meters.sampler --meters nvml,rapl,codecarbon` says `ready {...}` and then obeys one command a line:
`open PATH` (absolute; from now on rows go there) and `close`. Each is answered by `ok` or `error ...` after a reading
of all meters has been written, so that a run lies between two readings. `wait SECONDS` is answered when no meter is
starting any more, or after that time. The end of the input, or of the parent, ends
it. It uses no network, and an error of a meter or of the disk never ends it. `bench.meters.sidecar` is the other end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bench.meters.conditions import ConditionsMeter
from bench.meters.estimate import CodecarbonMeter
from bench.meters.nvml import NvmlMeter, list_gpus
from bench.meters.rapl import RaplMeter
from bench.meters.replay import ReplayMeter
from bench.meters.trace import INTERVAL, Reading

SLOW_SECONDS = 1.0
"""Period of CodeCarbon, which averages the load itself, and of conditions."""
RAPL_SECONDS = 0.5
"""Its counter is always up to date: so often, the edges of a window of some seconds are known well enough."""
SLOW_METERS = ("rapl", "codecarbon", "conditions")
FLUSH_SECONDS = 0.5
"""Rows are held back so long and written together: half of the sidecar's time went into single writes. What is lost if the
sidecar itself is killed is no more than that.
"""
LATE_READINGS, LATE_SECONDS = 3, 0.04
"""After the end of a run until more than one period of a GPU's counter has passed: the last holds all that was drawn."""
NICENESS = 5


class Meter(Protocol):
    """What the sampler reads. `reason` says why it reads nothing."""

    reason: str | None

    def read(self) -> list[Reading]:
        """Return what is to be read now; failed reads as event rows."""

    def close(self) -> None:
        """Let go of the hardware."""


class MeterLoop:
    """Reads meters by a schedule and writes their rows: NVML every `interval` seconds, the others every second."""

    def __init__(self, meters: dict[str, Meter], interval: float) -> None:
        self._meters = meters
        self._interval = interval
        self._due = dict.fromkeys(meters, 0.0)
        self._file: int | None = None
        self._problem = ""
        self._torn = False
        self._held: list[str] = []
        self._flush_at = 0.0

    @property
    def state(self) -> dict[str, object]:
        """Which meters are live, which are still starting, and why the others are absent."""
        starting = [name for name, meter in self._meters.items() if getattr(meter, "starting", False)]
        absent = {name: meter.reason for name, meter in self._meters.items() if meter.reason and name not in starting}
        live = [name for name in self._meters if name not in starting and name not in absent]
        return {"live": live, "starting": starting, "absent": absent}

    def serve(self, commands: int, reply: Callable[[str], None]) -> None:
        """Sample and obey commands until the input ends or the parent is gone.

        Processes that the parent forked may hold the other end of the input, so its end alone is no sign of life.
        """
        parent = os.getppid()
        pending = b""
        while os.getppid() == parent:
            # Slow meters wait for the next reading of a quick one: waking up costs more than reading.
            quick = [at for name, at in self._due.items() if name not in SLOW_METERS and at < math.inf]
            next_tick = min(quick or self._due.values(), default=math.inf) if self._file is not None else math.inf
            wait = min(max(0.0, next_tick - time.monotonic()), SLOW_SECONDS)
            if select.select([commands], [], [], wait)[0]:
                data = os.read(commands, 65536)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    reply(self.obey(os.fsdecode(line)))
            else:
                self.tick(time.monotonic())
        self._flush()

    def obey(self, line: str) -> str:
        """Do what a command says and return the answer. A file's last reading is also the first of the next one."""
        command, _, path = line.partition(" ")
        if command == "wait" and path.isdecimal():
            deadline = time.monotonic() + int(path)
            while self.state["starting"] and time.monotonic() < deadline:
                time.sleep(0.05)
            return "ok"
        if command not in ("open", "close") or (command == "open" and not Path(path).is_absolute()):
            return f"error: unknown command {line!r}, give open with an absolute path, close, or wait"
        rows = self._read(list(self._meters))
        self._write(rows)
        for _ in range(LATE_READINGS if command == "close" and self._file is not None and self._late else 0):
            time.sleep(LATE_SECONDS)
            self._write(self._read(self._late))
        self._write([self._event("stop")])
        self._flush()
        problem = self._problem
        if self._file is not None:
            os.close(self._file)
        self._file, self._problem, self._torn = None, "", False
        if command == "open":
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                return f"error: {error}"
            self._torn = os.fstat(self._file).st_size > 0  # whoever wrote it before may have died in a line
            self._write([self._event("start"), *rows])
            self._flush()
            problem = self._problem
            now = time.monotonic()
            self._due = {name: now + self._period(name) for name in self._meters}
        return f"error: {problem}" if problem else "ok"

    def tick(self, now: float) -> None:
        """Read the meters that are due. A tick that was missed is left out; the others stay where they were."""
        if self._file is None:
            return
        due = [name for name, at in self._due.items() if at <= now]
        for name in due:
            period = self._period(name)
            self._due[name] += period * (math.floor((now - self._due[name]) / period) + 1)
        self._write(self._read(due))
        if now >= self._flush_at:
            self._flush()

    @property
    def _late(self) -> list[str]:
        """Live meters whose counter shows the energy until now a little later only."""
        return [name for name, meter in self._meters.items() if name == "nvml" and meter.reason is None]

    def _period(self, name: str) -> float:
        if self._meters[name].reason is not None:
            return math.inf
        if name == "rapl":
            return RAPL_SECONDS
        return SLOW_SECONDS if name in SLOW_METERS else self._interval

    def _read(self, names: Sequence[str]) -> list[Reading]:
        rows: list[Reading] = []
        for name in names:
            try:
                rows += self._meters[name].read()
            except Exception as error:  # noqa: BLE001  one meter's mistake must not cost the others' data
                rows.append(self._event("error", f"{name}: {error!r}"))
        return rows

    def _event(self, event: str, message: str | None = None) -> Reading:
        message = message or json.dumps(self.state)
        return Reading(t_ns=time.monotonic_ns(), wall_ns=time.time_ns(), event=event, message=message)

    def _write(self, rows: list[Reading]) -> None:
        """Hold rows for the next flush."""
        if self._file is not None:
            self._held += [row.to_json() for row in rows]

    def _flush(self) -> None:
        """Append what is held by one write: a crash leaves whole lines. What the disk refuses is lost, and said once."""
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        if self._file is None or not self._held:
            return
        data = "".join(["\n" if self._torn else "", *(f"{line}\n" for line in self._held)]).encode()
        self._held = []
        problem = ""
        try:
            written = os.write(self._file, data)
            self._torn = written < len(data)
            problem = "the disk is full" if self._torn else ""
        except OSError as error:
            problem = str(error)
        if problem and problem != self._problem:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"meter sidecar: rows are lost: {problem}\n")
        self._problem = problem


def make_meters(names: Sequence[str], gpus: Sequence[str] | None) -> dict[str, Meter]:
    """Return the named meters (`replay:PATH` replays a trace) for the GPUs with these UUIDs, or all visible ones.

    Where any is named, what surrounds the measurement is read too (`conditions`).
    """
    visible, _, reason = list_gpus() if "nvml" in names else ([], None, None)
    uuids = [gpu.uuid for gpu in visible] if gpus is None else gpus
    meters: dict[str, Meter] = {}
    nvml: NvmlMeter | None = None
    for name in dict.fromkeys(names):
        kind, _, path = name.partition(":")
        if kind == "nvml":
            meters[name] = nvml = NvmlMeter(uuids)
            nvml.reason = (reason or nvml.reason) if nvml.reason else None
        elif kind == "rapl":
            meters[name] = RaplMeter()
        elif kind == "codecarbon":
            meters[name] = CodecarbonMeter()
        elif kind == "replay":
            meters[name] = ReplayMeter(Path(path))
        else:
            raise ValueError(f"unknown meter {name!r}, use nvml, rapl, codecarbon or replay:PATH")
    meters["conditions"] = ConditionsMeter(nvml, os.getppid())
    return meters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sidecar on standard input and output."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.meters.sampler", description=__doc__)
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between two readings of a GPU")
    parser.add_argument("--meters", default="nvml,rapl,codecarbon")
    parser.add_argument("--gpus", help="UUIDs, separated by commas; all visible ones if not given")
    options = parser.parse_args(arguments)
    # Ctrl-C and a closed terminal reach the whole group: the parent decides, and closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    # Libraries and their child processes must neither take commands nor print among the answers.
    commands, replies = os.dup(0), os.dup(1)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    gpus = None if options.gpus is None else [uuid for uuid in options.gpus.split(",") if uuid]
    try:
        meters = make_meters(options.meters.split(","), gpus)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    sampler = MeterLoop(meters, options.interval)
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, f"ready {json.dumps(sampler.state)}\n".encode())
        sampler.serve(commands, lambda answer: _answer(replies, answer))
    for meter in meters.values():
        meter.close()
    return 0


def _answer(replies: int, answer: str) -> None:
    os.write(replies, f"{answer}\n".encode())


if __name__ == "__main__":
    os._exit(main())  # at once: an ordinary exit would wait for a CodeCarbon that is still starting
