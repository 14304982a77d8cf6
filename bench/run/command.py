"""Run a command of the user, and read its steps.

Steps come from `wattbench` in the script, from hooks in torch (`bench/hooks`), or from the lines that it prints: those of
`step_pattern`, a regular expression, or of a known format (`bench.workloads.printed`). Without steps the window is the whole
command.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Self

import psutil

from bench.folder import (
    ASKED_TO_END,
    COMMAND_END,
    COMMAND_STEPS,
    PARTIAL,
    RESULT,
    STEPS,
    WORKER_LOG,
    CommandEnd,
    ErrorKind,
    RankError,
    write_error,
)
from bench.process import SCRIPT, boot_id, die_with_parent, oom_kills, signal_name
from bench.record import WANDB, Measurement
from bench.redact import redact
from bench.run.ending import NO_LIMIT, Ending, Processes, Signals, WindowLength
from bench.run.meeting import Meeting
from bench.run.own_steps import LEAST_STEPS, Ended, measurement
from bench.run.reserve import is_full, note_full, reserved
from bench.run.streams import Streams
from bench.run.wandb_runs import wandb_runs
from bench.run.watch import Tally, Watch
from bench.schema import RunSpec, Scalar
from bench.steps import VARIABLE
from bench.workloads.command import CommandArgs, fill
from bench.workloads.printed import Printed

EXIT_CODES: dict[type[OSError], int] = {FileNotFoundError: 127, PermissionError: 126}
"""Exit codes of a shell for a command that it cannot start."""
HOOKS = str(Path(__file__).parent.parent / "hooks")
"""Folder of the `sitecustomize` that puts hooks into torch."""
SEEN_VARIABLE, BOOT_VARIABLE = "WATTBENCH_SEEN", "WATTBENCH_BOOT"
NO_MEMORY = re.compile("(CUDA|HIP) out of memory|OutOfMemoryError|BLAS_STATUS_ALLOC_FAILED|can't allocate memory")
"""What the log of a process says whose memory ran out."""
TORCHRUN_FAILURE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
OTHER_FAILURE = re.compile(
    r"process \d+ terminated with (?:signal \w+|exit code \d+)|process rank \d+ with PID \d+.*signal \d+"
)
"""How torchrun, `torch.multiprocessing` and Open MPI tell of the process that failed first."""
LOST_PEER = re.compile(
    r"onnection closed by peer|onnection reset by peer|Broken pipe|remote process exited|ncclRemoteError|Socket Timeout"
)
"""How a process tells that it lost another one, which failed first."""
TICK_SECONDS, POLL_SECONDS, AGREE_SECONDS = 0.2, 0.02, 2.0
"""Time between two looks at the steps of a command, and at its end where the kernel does not tell of it.

The last is the longest that the first of several nodes waits for the others to know that all of them end.
"""
SHOWN_BYTES, SHOWN_PARTS = 384, 64
"""Bytes of output in a message to the launcher, whose lines are short, and messages at a look."""


def _environment(base: Mapping[str, str] | None, steps: Path, *, hooks: bool, read: bool) -> dict[str, str]:
    """Return the environment of a command: where steps are written, and where Python finds the hooks and `wattbench`."""
    env = {**(os.environ if base is None else base), VARIABLE: str(steps), BOOT_VARIABLE: boot_id() or ""}
    if read:
        env.setdefault("PYTHONUNBUFFERED", "1")  # otherwise lines of the output arrive in batches
    if hooks:
        env[SEEN_VARIABLE] = str(steps.parent.absolute())
    folders = (HOOKS if hooks else None, env.get("PYTHONPATH"), str(SCRIPT))
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def execute(
    argv: list[str],
    steps: Path,
    *,
    how: Printed | None = None,
    hooks: bool = True,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    signals: Signals | None = None,
    limit: WindowLength = NO_LIMIT,
    warmup_steps: int = 0,
    tick: Callable[[Tally], object] | None = None,
    before_end: Callable[[], object] | None = None,
    first: Callable[[], None] | None = None,
) -> Ended:
    """Run a command and wait for its end; its steps go to the file `steps`. Raises OSError if it cannot be started.

    Output goes to that of this process, or to `output`. Where it prints its steps, each line is searched on its way;
    lines that a progress bar overwrites count too. Signals in the block `signals` go to the command; at the `limit`, which
    counts from the end of the warm-up, it is ended. `tick` gets its progress a few times a second; True ends it too.
    `before_end` is called before it is ended. With `hooks`, what these see of torch goes to the folder of `steps`.
    """
    env = _environment(environment, steps, hooks=hooks, read=how is not None)
    streams = Streams(how.pattern, steps, output) if how else None
    before, kills = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, oom_kills()
    start = time.monotonic_ns()
    try:
        ends = (output, None) if streams is None else (streams.stdout, streams.stderr)
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=ends[0], stderr=ends[1], preexec_fn=first)
    finally:
        if streams is not None:
            streams.started()
    processes = Processes(process.pid)
    (signals := signals or Signals()).attach(processes, streams.resize if streams is not None else None)
    watch = Watch(steps.parent, warmup_steps, (how.steps_per_line if how else None) or 1)
    watched, endings = tick is not None or limit != NO_LIMIT, list[Ending]()

    def look() -> None:
        progress = watch.update() if watched else Tally()
        enough = tick is not None and tick(progress) is True
        if not endings and (enough or limit.reached(progress, start, time.monotonic_ns())):
            endings.append(Ending(processes, before_end))
        for ending in endings:
            ending.go_on()

    stop, full = _until_end(process.pid, TICK_SECONDS if watched else None, streams, steps.parent, look)
    for ending in endings:
        ending.finish()
    signals.detach()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    asked = signals.cause(process.returncode)
    processes.release(process.returncode)
    if streams is not None:
        streams.drain()
    return Ended(
        exitcode=process.returncode,
        start_ns=start,
        end_ns=stop,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * 1024 if usage.ru_maxrss > before else None,
        by="limit" if endings else "signal" if asked is not None else None,
        signal="" if asked is None else signal_name(asked),
        killed_for_memory=process.returncode != 0 and kills is not None and (oom_kills() or 0) > kills,
        tail=b"" if streams is None else streams.tail,
        disk_full=full,
        lines_lost=streams is not None and streams.unwritten > 0,
    )


def _until_end(
    pid: int, seconds: float | None, streams: Streams | None, folder: Path, look: Callable[[], None]
) -> tuple[int, bool]:
    """Wait until a child ends, with a look in between; return when it did, and whether the disk of a folder was full."""
    full = False
    with reserved(folder), _Exit(pid) as end:
        while not end.wait(seconds, streams):
            full |= is_full(folder)
            if full or (streams is not None and streams.unwritten):
                note_full(folder)
            look()
        return time.monotonic_ns(), full or is_full(folder)


class _Exit:
    """The end of a child of this process, which stays to be reaped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._file: int | None = None
        with suppress(AttributeError, OSError):  # only Linux has it, from 5.3
            self._file = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)

    def wait(self, seconds: float | None, streams: Streams | None) -> bool:
        """Return whether the child has ended; wait for that or for its output, which is passed on."""
        places = [] if streams is None else streams.open
        ready = wait(places, POLL_SECONDS) if self._file is None else wait([*places, self._file], seconds)
        for place in places:
            if streams is not None and place in ready:
                streams.read(place)
        if self._file is not None:
            return self._file in ready
        return psutil.Process(self._pid).status() == psutil.STATUS_ZOMBIE


def run(spec: RunSpec, folder: Path, environment: Mapping[str, str], here: Path, meeting: Meeting = Meeting()) -> int:  # noqa: B008
    """Do one run of a suite: write `result.json` or what went wrong, and return the exit code.

    On several nodes the first decides that a limit is reached; the launcher hears it, and tells all nodes to end.
    """
    args, limit = CommandArgs.of(spec), WindowLength(spec.measure_steps, spec.measure_seconds)
    steps, where = STEPS.path(folder, COMMAND_STEPS), here / (args.folder or ".")
    variables = {**environment, **meeting.variables(environment)}
    more: dict[str, Any] = {"warmup_steps": spec.warmup_steps, "environment": variables}
    more |= {"limit": limit if meeting.node == 0 else NO_LIMIT}
    asked, output = folder / ASKED_TO_END, _Output(meeting, folder / WORKER_LOG)
    if meeting.nodes > 1 or meeting.channel is not None:
        more |= {"tick": lambda _: asked.exists() or output.pass_on()}
        more |= {"before_end": lambda: _agree_to_end(meeting, folder)}
    more |= {"how": args.printed, "hooks": args.hooks is not False, "folder": str(where)}
    try:
        ended = execute(fill(spec, meeting.values(args.argv)), steps, first=_first, **more)
    except OSError as error:
        message = redact(f"the command cannot be started: {error.filename}: {why_not_started(error)}")
        write_error(
            folder, RankError(kind="failed", type=type(error).__name__, message=message, rank=_rank(spec, meeting.node))
        )
        return EXIT_CODES.get(type(error), 126)
    if ended.by == "limit" and (name := asked.read_text() if asked.exists() else ""):
        ended = replace(ended, by="signal", signal=name)
    if leave(spec, ended, folder, where, meeting.node):
        return 0
    return (128 - ended.exitcode if ended.exitcode < 0 else ended.exitcode) or 1


@dataclass
class _Output:
    """What a command has printed to its log, of which the launcher is told as it comes; it reads the rest from the log."""

    meeting: Meeting
    log: Path
    place: int = 0

    def pass_on(self) -> bool:
        """Send what is new; return False, as the command goes on."""
        if not self.meeting.show or not self.log.exists():
            return False
        with self.log.open("rb") as file:
            file.seek(self.place)
            for _ in range(SHOWN_PARTS):
                if not (part := file.read(SHOWN_BYTES)):
                    break
                self.meeting.tell(output=base64.b64encode(part).decode())
                self.place += len(part)
        return False


def _agree_to_end(meeting: Meeting, folder: Path) -> None:
    """Let the launcher tell all nodes that a limit is reached, and wait for it a short time, so that they end together."""
    if meeting.node == 0:
        meeting.tell(limit=folder.name)
    end = time.monotonic() + AGREE_SECONDS
    while not (folder / ASKED_TO_END).exists() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _rank(spec: RunSpec, node: int) -> int:
    """Return the first rank of a node."""
    return node * spec.devices_per_node


def _first() -> None:
    """Make a command end with the agent of its run, and by SIGINT, which an agent ignores."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def why_not_started(error: OSError) -> str:
    """Return why a command cannot be started, with the remedy where there is one."""
    if error.errno == errno.ENOEXEC:
        return "it has no first line that names its program: add #!/bin/sh, or run it by sh"
    return error.strerror or str(error)


def leave(spec: RunSpec, ended: Ended, folder: Path, where: Path = Path(), node: int = 0) -> bool:
    """Write `result.json` of a command that has ended; or how it failed, with what was seen of it until then.

    It ran in the folder `where`, and may have made runs of W&B there. Of several nodes each also leaves how it ended there.

    Return whether there is a result: also for a command that was ended before its time, where two steps were seen.
    """
    steps, how = STEPS.path(folder, COMMAND_STEPS), CommandArgs.of(spec).printed
    result = measurement(steps, ended, spec.warmup_steps, spec.device_type, how)
    ids = wandb_runs(where, ended.start_ns, ended.end_ns)
    notes: dict[str, Scalar] = {WANDB: ", ".join(ids)} if ids else {}
    result = result.changed(notes=result.notes | notes)
    if spec.num_nodes > 1:
        names = ("exitcode", "start_ns", "end_ns", "cpu_seconds", "peak_memory_bytes", "by")
        full = ended.disk_full or ended.lines_lost
        told = {name: getattr(ended, name) for name in names}
        COMMAND_END.write(folder, CommandEnd(**told, disk_full=full, notes=notes))
    if _partial(result, fill(spec)):
        result = result.changed(samples=None, tokens=None, step_flags=[*result.step_flags, "partial_world"])
    if ended.lines_lost or (ended.disk_full and result.step_source != "output"):
        result = result.changed(step_flags=[*result.step_flags, "disk_full"])
    if ended.by == "signal":
        result = result.changed(step_flags=[*result.step_flags, "ended_early"])
    log = folder / WORKER_LOG
    failure = failure_of(ended, log)
    stopped = ended.by == "signal" and result.steps >= LEAST_STEPS and failure.kind != "out_of_memory"
    if ended.exitcode == 0 or ended.by == "limit" or stopped:
        RESULT.write(folder, result)
        return True
    write_error(folder, failure.changed(rank=_rank(spec, node)))
    if ended.tail and not log.exists():
        log.write_bytes(ended.tail)
    if result.steps >= LEAST_STEPS:
        PARTIAL.write(folder, result)
    return False


def _partial(result: Measurement, argv: Sequence[str]) -> bool:
    """Return whether printed steps count the work of several nodes, of which one is measured here."""
    seen = result.seen
    beyond = seen is not None and (seen.world_size or 0) > seen.processes
    return result.step_source in (None, "output") and (beyond or _several_nodes(argv))


def _several_nodes(argv: Sequence[str]) -> bool:
    """Return whether a command line starts one of several nodes, whose script counts the work of all of them."""
    option = r"--(?:nnodes|num[-_]machines|num[-_]nodes|nodes)[= ]|\bsrun (?:\S+ )*?-N ?"
    found = re.finditer(rf"(?:{option})(?:\d+[:-])?(\d+)", " ".join(argv))
    return any(int(number[1]) > 1 for number in found)


def failure_of(ended: Ended, log: Path) -> RankError:
    """Describe how a command failed as a rank would; it is out of memory if the end of its output, or the kernel, says so."""
    text = (log.read_bytes()[-16_384:] if log.exists() else ended.tail).decode(errors="replace")
    how = f"exit code {ended.exitcode}" if ended.exitcode >= 0 else signal_name(-ended.exitcode)
    if 128 < ended.exitcode <= 128 + signal.NSIG:  # as a shell reports the signal that ended what it ran
        how += f" ({signal_name(ended.exitcode - 128)})"
    if NO_MEMORY.search(text) or ended.killed_for_memory:
        return RankError(kind="out_of_memory", type="OutOfMemory", message=f"the command ran out of memory ({how})")
    if ended.by == "signal":
        message = f"the command was ended by {ended.signal} before {LEAST_STEPS} steps after its warm-up were seen"
        return RankError(kind="failed", type="EndedEarly", message=message)
    first = _first_failure(text)
    kind: ErrorKind = "peer" if LOST_PEER.search(text) and "was ended by" not in first else "failed"
    return RankError(kind=kind, type="ExitCode", message=f"the command ended with {how}{first and f': {first}'}")


def _first_failure(text: str) -> str:
    """Return which process failed first and how, where a launcher tells it in the log; else nothing."""
    if failures := TORCHRUN_FAILURE.findall(text):
        code, rank, pid = map(int, failures[-1])  # it has started its processes again after those before
        end = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"process {pid} (local rank {rank}) {end}"
    other = OTHER_FAILURE.search(text)
    return other[0] if other is not None else ""
