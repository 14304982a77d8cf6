"""Write the records of commands whose `bench measure` was killed, from the files that it left."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

import psutil

from bench import folder as files
from bench.files import is_held
from bench.meters.windows import read_trace
from bench.record import RunRecord
from bench.redact import redact_argv
from bench.run.collect import Context, collect
from bench.run.watch import Watch
from bench.schema import RunSpec
from bench.steps import VARIABLE


def recover(runs: Path) -> list[tuple[RunRecord, Path]]:
    """Return the records that were missing in a folder of runs, and are there now, each with its folder.

    A command may go on without `bench`, but its energy is not read any more: its record ends with the last reading.
    """
    made = []
    for path in sorted(runs.glob(f"*/*/*/{files.BEGINNING.name}")):
        folder = path.parent
        began, spec = files.BEGINNING.find(folder), files.SPEC.find(folder)
        if began is None or spec is None or (folder / files.RECORD.name).exists():
            continue
        if is_held(folder.parent / files.LOCK) is not False:
            continue  # it is not over
        if files.EXIT.find(folder) is None:
            start = began.start_ns
            end = files.Exit(
                how="gone", start_ns=start, end_ns=_last(folder, spec) or start, started_at=began.started_at
            )
            files.EXIT.write(folder, end)
        context = Context(began.suite, began.execution, began.site, began.environment, began.gpus)
        made.append((collect(context, spec, folder), folder))
    return made


def left_running(runs: Path) -> dict[int, str]:
    """Return the processes of commands in a folder of runs that go on without `bench`: id -> command line.

    They are known by the variable that names their file of steps. Of a tree its root is named. Those that a command has left
    on purpose have a record of an end that `bench` has seen.
    """
    alone: dict[int, tuple[int, str]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is that of another user
            steps = Path(process.environ().get(VARIABLE, os.devnull))
            folder = steps.parent
            if not steps.is_relative_to(runs.absolute()) or is_held(folder.parent / files.LOCK) is not False:
                continue
            end = files.EXIT.find(folder)
            if end is None or end.how == "gone" or not (folder / files.RECORD.name).exists():
                alone[process.pid] = process.ppid(), shlex.join(redact_argv(process.cmdline()))
    return {pid: words for pid, (parent, words) in alone.items() if parent not in alone}


def _last(folder: Path, spec: RunSpec) -> int | None:
    """Return the time of the last reading of the meters, or else of the last step; None without both."""
    trace = read_trace(folder)
    if trace is not None and trace.rows:
        return trace.rows[-1].t_ns
    watch = Watch(folder, spec.warmup_steps)
    tally = watch.update()
    while (more := watch.update()) != tally:  # it reads a part at a time
        tally = more
    return tally.last_ns
