"""A command that is measured on all nodes of an allocation, by agents that stay warm between repeats (bench.run.agent)."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from bench.errors import FAILED, UserError
from bench.folder import EXIT, RESULT, SPEC, WORKER_LOG
from bench.redact import redact_argv
from bench.run.ending import Signals
from bench.run.srun import SrunLauncher
from bench.schema import RunSpec
from bench.workloads.command import fill, mistakes_on_nodes


def check_for_nodes(argv: list[str], spec: RunSpec) -> None:
    """Raise UserError for a command that cannot be started on the nodes, with all mistakes."""
    mistakes = mistakes_on_nodes(fill(spec), spec) if spec.num_nodes > 1 else ()
    wrong = [mistake.replace("argv", "COMMAND") for mistake in mistakes]
    if redact_argv(argv) != argv:
        wrong.append(
            "COMMAND holds a secret, which nodes would read from a file: set an environment variable to it instead"
        )
    if wrong:
        raise UserError(*wrong)


def run_on_nodes(launcher: SrunLauncher, folder: Path, signals: Signals, output: IO[bytes] | None) -> None:
    """Do the run of a folder that has a `spec.json`; what the command prints on the first node goes to `output` as it comes.

    The first signal that asks for an end reaches the command on all nodes. After a second one, or where the allocation ends,
    nothing is left of the run, and KeyboardInterrupt or Stopped is raised. The end of the run has the exit code of the
    command, or 1 where nothing was measured.
    """
    place, passed_on = output or sys.stdout.buffer, 0

    def show(data: bytes) -> None:
        nonlocal passed_on
        passed_on += len(data)
        with suppress(OSError):
            place.write(data)
            place.flush()

    def tick() -> None:
        if signals.asked is not None and signals.deferred:
            launcher.end(signals.asked.name)
            signals.deferred = False

    launcher.show = show
    try:
        launcher.submit(folder)
        launcher.wait(folder, SPEC.read(folder).timeout_seconds, tick)
    except (KeyboardInterrupt, UserError):
        launcher.cancel(folder)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        signals.deferred = True
    with suppress(OSError):
        show((folder / WORKER_LOG).read_bytes()[passed_on:])
    end = EXIT.read(folder)
    code = end.exitcode or (0 if (folder / RESULT.name).exists() else FAILED)
    if launcher.ended_by is not None and end.how == "ended":
        by_signal = signals.asked is not None and launcher.ended_by == signals.asked.name
        end = end.changed(how="stopped")
        code = 128 + signals.asked if by_signal and signals.asked else code
    EXIT.write(folder, end.changed(exitcode=code))
