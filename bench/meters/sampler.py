"""The meter sidecar: it reads all meters of a node and appends their rows to a file, in a process of its own.

`python -P -m bench.meters.sampler --meters nvml,rapl,codecarbon` writes the message `{"ready": state}` and then answers
requests, see `bench.pipe`. `{"open": path}`: write rows to this file from now on (the path is absolute). `{"close": true}`:
stop writing. Both are answered after a reading of all meters has been written, so a run lies between two readings.
`{"wait": seconds}`: answer when no meter is starting, or after this time. Answers are `{"ok": true}` or `{"error": text}`.
The process ends when its input or its parent ends. It uses no network, and no error of a meter or of the disk ends it.
`bench.meters.sidecar` is the parent's side.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.meters.conditions import ConditionsMeter
from bench.meters.meter import INTERVAL, Meter, Reading, meter_class
from bench.pipe import Pipe

LONGEST_SLEEP_SECONDS = 1.0
FLUSH_SECONDS = 0.5
"""Rows are written together after this time: half of the sidecar's time went into single writes. If the sidecar is killed,
at most this much is lost."""
LATE_READINGS, LATE_SECONDS = 3, 0.04
"""Readings after the end of a run, until more than one period of a counter with steps has passed. The last one contains all
energy that was drawn."""
NICENESS = 5


class Recorder:
    """Reads meters on a schedule and writes their rows; fast meters are read every `interval` seconds."""

    def __init__(self, meters: Mapping[str, Meter], interval: float = INTERVAL) -> None:
        self._meters = meters
        self._interval = interval
        self._due = dict.fromkeys(meters, 0.0)
        self._file: int | None = None
        self._problem = ""
        self._torn = False
        self._unwritten: list[str] = []
        self._flush_at = 0.0

    @property
    def state(self) -> dict[str, object]:
        """Which meters are live, which are still starting, and why the others are absent."""
        starting = [name for name, meter in self._meters.items() if meter.starting]
        absent = {name: meter.reason for name, meter in self._meters.items() if meter.reason and name not in starting}
        live = [name for name in self._meters if name not in starting and name not in absent]
        return {"live": live, "starting": starting, "absent": absent}

    def serve(self, pipe: Pipe) -> None:
        """Read meters and answer requests until the input ends or the parent is gone.

        Processes that the parent forked may hold the other end of the input, so an open input does not prove a parent.
        """
        parent = os.getppid()
        while os.getppid() == parent:
            # Slow meters wait for the next reading of a fast one: waking up costs more than reading.
            fast = [at for name, at in self._due.items() if self._fast(name) and at < math.inf]
            next_tick = min(fast or self._due.values(), default=math.inf) if self._file is not None else math.inf
            try:
                request = pipe.receive(min(max(0.0, next_tick - time.monotonic()), LONGEST_SLEEP_SECONDS))
            except (EOFError, ValueError):
                break
            if request is None:
                self.tick(time.monotonic())
            else:
                error = self.obey(request)
                pipe.send(**({"error": error} if error else {"ok": True}))
        if self._file is not None:  # the parent was killed: what it ran is measured until now
            self.obey({"close": True})

    def obey(self, request: Mapping[str, Any]) -> str:
        """Carry out a request and return what went wrong. The last reading of a file is also the first of the next one."""
        command: str = next(iter(request), "")
        value: Any = request.get(command)
        if command == "wait":
            deadline = time.monotonic() + value
            while self.state["starting"] and time.monotonic() < deadline:
                time.sleep(0.05)
            return ""
        if command not in ("open", "close") or (command == "open" and not Path(value).is_absolute()):
            return f"unknown request {dict(request)}: send open with an absolute path, close, or wait"
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
                self._file = os.open(value, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                return str(error)
            self._torn = os.fstat(self._file).st_size > 0  # an earlier writer may have died within a line
            self._write([self._event("start"), *rows])
            self._flush()
            problem = self._problem
            now = time.monotonic()
            self._due = {name: now + self._period(name) for name in self._meters}
        return problem

    def tick(self, now: float) -> None:
        """Read the meters that are due. A missed tick is left out and does not move the others."""
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
        """Live meters whose counter shows the energy until now only a little later."""
        return [name for name, meter in self._meters.items() if meter.steps and meter.reason is None]

    def _fast(self, name: str) -> bool:
        return self._meters[name].period <= INTERVAL

    def _period(self, name: str) -> float:
        if self._meters[name].reason is not None:
            return math.inf
        return self._interval if self._fast(name) else self._meters[name].period

    def _read(self, names: Sequence[str]) -> list[Reading]:
        rows: list[Reading] = []
        for name in names:
            try:
                rows += self._meters[name].read()
            except Exception as error:  # noqa: BLE001  an error of one meter must not cost the data of the others
                rows.append(self._event("error", f"{name}: {error!r}"))
        return rows

    def _event(self, event: str, message: str | None = None) -> Reading:
        message = message or json.dumps(self.state)
        return Reading(t_ns=time.monotonic_ns(), wall_ns=time.time_ns(), event=event, message=message)

    def _write(self, rows: list[Reading]) -> None:
        """Keep rows for the next flush."""
        if self._file is not None:
            self._unwritten += [row.to_json() for row in rows]

    def _flush(self) -> None:
        """Append the rows by one write, so that a crash leaves whole lines. Report once if the disk refuses rows."""
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        if self._file is None or not self._unwritten:
            return
        data = "".join(["\n" if self._torn else "", *(f"{line}\n" for line in self._unwritten)]).encode()
        self._unwritten = []
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
    """Return the named meters for the GPUs with these UUIDs, or for all visible ones, and one for the conditions.

    Raises ValueError for an unknown name.
    """
    meters = {name: meter_class(name).open(name.partition(":")[2], gpus) for name in dict.fromkeys(names)}
    return meters | {"conditions": ConditionsMeter(list(meters.values()), os.getppid())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sidecar on standard input and output."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.meters.sampler", description=__doc__)
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between two readings of a fast meter")
    parser.add_argument("--meters", required=True, help="names of meters, separated by commas")
    parser.add_argument("--gpus", help="UUIDs, separated by commas; default: all visible GPUs")
    options = parser.parse_args(arguments)
    # Ctrl-C, a closed terminal and `timeout` reach the whole process group: the parent decides, and closes the input.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    # Libraries and their child processes must not read requests or print between answers.
    pipe = Pipe(os.dup(0), os.dup(1))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    gpus = None if options.gpus is None else [uuid for uuid in options.gpus.split(",") if uuid]
    try:
        meters = make_meters(options.meters.split(","), gpus)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    recorder = Recorder(meters, options.interval)
    pipe.send(ready=recorder.state)
    recorder.serve(pipe)
    for meter in meters.values():
        meter.close()
    return 0


if __name__ == "__main__":
    os._exit(main())  # at once: an ordinary exit would wait for a CodeCarbon that is still starting
