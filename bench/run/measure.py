"""Measure a command, once or several times: time, energy by component, carbon, cost, memory.

A record is like that of any run. Calls with a name make a suite of that name: while the environment and the programs stay
the same, later calls add repeats and configurations to its newest execution.
"""

from __future__ import annotations

import errno
import math
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from bench import folder as files
from bench.errors import BadValue, UserError
from bench.files import held, write_json, write_text
from bench.machine.cluster import Cluster
from bench.machine.environment import EnvironmentProblem, describe
from bench.meters.sidecar import Sidecar
from bench.process import adopt_orphans, drop_lost_output
from bench.record import RunRecord, Status
from bench.redact import redact_argv
from bench.run.braces import filled, template
from bench.run.collect import Context, collect
from bench.run.command import EXIT_CODES, execute, leave, why_not_started
from bench.run.course import Course, Follower, LiveEnergy, used_by
from bench.run.ending import Signals, WindowLength
from bench.run.kept import KeptFiles
from bench.run.launcher import LaunchOptions
from bench.run.on_nodes import check_for_nodes, run_on_nodes
from bench.run.own_steps import Ended
from bench.run.program import program_hashes
from bench.run.reserve import written
from bench.run.srun import SrunLauncher
from bench.run.watch import Tally
from bench.schema import COMMAND, MEASURE, SLUG, Machine, RunSpec, Scalar, Site
from bench.store.progress import Flight
from bench.workloads.command import MEETING, CommandArgs
from bench.workloads.printed import Printed, check_pattern

NODE_NAMES = ("num_nodes", *MEETING)
"""Names in braces that mean something in a command on several nodes."""


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure, and how; the command is ended after `steps` or `seconds` of its window.

    `printed` says how it prints its steps. Output goes to `output`, or else to the terminal. `settings` are arguments of the
    user's own, as they were typed, for `{name}` in `argv`. The command is ended too when all its runs have used up one of
    `limits`, by quantity. `listen` is told once a second how it goes, and `before_end` called before it is
    ended; `total_steps` is the length of the whole training. `on_nodes`: it runs on all nodes of an allocation.
    """

    argv: list[str]
    name: str = MEASURE
    settings: Mapping[str, str] = field(default_factory=dict)
    meters: Sequence[str] | None = None
    site: Site = field(default_factory=Site)
    warmup_steps: int = 3
    idle_seconds: float = 3.0
    steps: int | None = None
    seconds: float | None = None
    printed: Mapping[str, str | int] = field(default_factory=dict)
    output: IO[bytes] | None = None
    repeats: int = 1
    total_steps: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    listen: Callable[[Course], None] | None = None
    before_end: Callable[[], object] | None = None
    on_nodes: bool = False

    @property
    def known(self) -> dict[str, str]:
        """The values of names in braces; those that only nodes know, which stand there, stay as they are."""
        used = (name for name in NODE_NAMES if self.on_nodes and any(f"{{{name}}}" in word for word in self.argv))
        return {**{name: f"{{{name}}}" for name in used}, **self.settings}

    @property
    def filled(self) -> list[str]:
        """The command with the values of its settings. Raises BadValue for another name in braces."""
        return filled(self.argv, self.known)


def step_pattern(text: str) -> str:
    """Return a step pattern as it was given. Raises BadValue where it cannot be one."""
    try:
        return check_pattern(text)
    except ValueError as error:
        raise BadValue(f"{text!r}: {error}") from error


def check_printed(options: Mapping[str, Any]) -> None:
    """Raise BadValue where options on printed lines contradict each other."""
    try:
        Printed(options.get("step_pattern"), options.get("steps_per_line"))
    except ValueError as error:
        raise BadValue(f"--steps-per-line {options['steps_per_line']}: {error}") from error


def measurement_name(text: str) -> str:
    """Return the name of a measurement as it was given. Raises BadValue where it cannot be that of a suite."""
    if re.fullmatch(SLUG, text) is None:
        raise BadValue(f"{text!r}: a name has lower-case letters, digits, - and _, such as lr-3e-4")
    return text


def setting(text: str) -> tuple[str, str]:
    """Return name and value of NAME=VALUE. Raises BadValue."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise BadValue(f"{text!r}: write NAME=VALUE, such as lr=3e-4")
    if key in {*RunSpec.model_fields, *CommandArgs.model_fields, *MEETING, "devices", "global_batch_size"}:
        raise BadValue(f"{key!r} is a field of every run: choose another name, such as my_{key}")
    return key, value


def _scalar(text: str) -> Scalar:
    """Return a number where the text is one that is shown as it was typed; 1.0 and 3e-4 stay text."""
    with suppress(ValueError):
        value = float(text)
        if value.is_integer() and str(int(value)) == text:
            return int(value)
        if f"{value:g}" == text and math.isfinite(value) and not value.is_integer():
            return value
    return text


def _gpus(machine: Machine) -> list[str]:
    return [gpu.uuid for gpu in machine.gpus if not gpu.used_by]


def specification(options: MeasureOptions, machine: Machine) -> RunSpec:
    """Describe the command as a run on all visible GPUs that others do not use, or as one process of the CPU."""
    text = shlex.join(template(redact_argv(options.argv), options.known))
    own = {key: _scalar(redact_argv([f"--{key}", value])[1]) for key, value in options.settings.items()}
    return RunSpec(
        workload=COMMAND,
        workload_args={"argv": text, **options.printed, **own},
        device_type="gpu" if _gpus(machine) else "cpu",
        launcher=machine.launcher,
        num_nodes=machine.num_nodes,
        devices_per_node=max(1, len(_gpus(machine))),
        open_devices=True,
        warmup_steps=options.warmup_steps,
        measure_steps=options.steps,
        measure_seconds=options.seconds,
        meters=machine.meters if options.meters is None else list(options.meters),
        timeout_seconds=2_000_000,
    )


def make_own_folder() -> bool:
    """Make the folder of runs that is ours, out of sight of git; return whether it is new."""
    folder = Path(files.OWN_RUNS)
    if folder.exists():
        return False
    with suppress(OSError):  # where it is really needed, the reason is told
        folder.mkdir()
        write_text(folder / files.IGNORE, "*\n")
    return folder.is_dir()


@dataclass
class CommandRuns:
    """The runs of one command in the folder of an execution; the meters read on in between, here or on `nodes`.

    `used` is what they have used, by quantity, and `over` the quantity whose limit has ended one. `renewed` are the parts of
    the command that have changed since the earlier runs of the name, which are in another execution.
    """

    options: MeasureOptions
    spec: RunSpec
    context: Context
    folder: Path
    sidecar: Sidecar | None
    nodes: SrunLauncher | None
    flight: Flight
    signals: Signals
    used: dict[str, float] = field(default_factory=dict)
    over: str | None = None
    renewed: list[str] = field(default_factory=list)
    _measured: str = "nothing is known of it"

    def run(self) -> tuple[RunRecord, Path]:
        """Run the command with the input and output of the terminal; return its record and its folder.

        Raises UserError with the exit code of a shell where the command cannot be started.
        """
        spec = self.spec.changed(repeat=_next_repeat(self.folder, self.spec))
        folder = self.folder / spec.run_id
        if self.nodes is not None:
            folder.mkdir()
            files.SPEC.write(folder, spec)
            now, silent = datetime.now(UTC), spec.timeout_seconds
            self.tell(current=spec.label[:300], run_began_at=now, remaining_seconds=None, silent_seconds=silent)
            run_on_nodes(self.nodes, folder, self.signals, self.options.output)
            return self._done(collect(self.context, spec, folder), folder)
        end = self._execute(spec, folder)
        if not isinstance(end, OSError):
            return self._done(*written(folder, lambda place: self._record(spec, end, place), self._measured))
        if type(end) not in EXIT_CODES and end.errno != errno.ENOEXEC:
            raise end
        message = f"cannot start {self.options.argv[0]}: {why_not_started(end)}"
        raise UserError(message, code=EXIT_CODES.get(type(end), 126)) from end

    def _done(self, record: RunRecord, folder: Path) -> tuple[RunRecord, Path]:
        """Count a run that is recorded."""
        for quantity, amount in used_by(record).items():
            self.used[quantity] = self.used.get(quantity, 0.0) + amount
        drop_lost_output()
        self.tell(done=self.flight.done + 1, failed=self.flight.failed + (record.status is not Status.OK))
        return record, folder

    def _record(self, spec: RunSpec, ended: Ended, folder: Path) -> RunRecord:
        """Write what is known of a command that has ended, and its record."""
        leave(spec, ended, folder)
        times: dict[str, Any] = {"start_ns": ended.start_ns, "end_ns": ended.end_ns}
        times |= {"started_at": files.BEGINNING.read(folder).started_at}
        how: Literal["ended", "stopped"] = "ended" if ended.by is None else "stopped"
        error = self.sidecar.error if self.sidecar is not None else None
        code = 0 if ended.by == "limit" else ended.exitcode  # it did what was asked
        files.EXIT.write(folder, files.Exit(how=how, exitcode=code, sidecar_error=error, **times))
        return collect(self.context, spec, folder)

    def _execute(self, spec: RunSpec, folder: Path) -> Ended | OSError:
        """Run the command, to which signals go, between two readings of the meters, and wait for its end."""
        sidecar, options = self.sidecar, self.options
        steps, readings = files.STEPS.path(folder, files.COMMAND_STEPS), files.RAW_METERS.path(folder, 0)
        facts = {name: getattr(self.context, name) for name in ("suite", "execution", "site", "environment", "gpus")}
        beginning = files.Beginning(**facts, started_at=datetime.now(UTC), start_ns=time.monotonic_ns())

        def begin() -> None:
            files.SPEC.write(folder, spec)
            if sidecar is not None:
                sidecar.open(readings)
            files.BEGINNING.write(folder, beginning)

        folder.mkdir(parents=True)  # never that of another run
        begin()
        follower = self._follower(spec, readings)
        new: dict[str, Any] = {"steps": None, "steps_per_second": None, "remaining_seconds": None}
        self.tell(current=spec.label[:300], run_began_at=beginning.started_at, **new)
        kept = KeptFiles([steps, readings], lambda: files.SEEN.paths(folder), begin)
        limit = WindowLength(spec.measure_steps, spec.measure_seconds)
        args = CommandArgs.of(spec)
        more: dict[str, Any] = {"signals": self.signals, "limit": limit, "warmup_steps": spec.warmup_steps}
        more |= {"how": args.printed, "hooks": args.hooks is not False, "output": options.output}
        more |= {"before_end": options.before_end}

        def tick(tally: Tally) -> bool:
            kept.look()
            return follower.tick(tally)

        try:
            ended = execute(options.filled, steps, tick=tick, **more)
        except OSError as problem:
            (folder / files.BEGINNING.name).unlink(missing_ok=True)  # nothing began
            return problem
        finally:
            if sidecar is not None:
                sidecar.close()
            kept.restore()
        if follower.over is not None:
            self.over = follower.over
            ended = replace(ended, by="signal", signal="its budget")
        return ended

    def _follower(self, spec: RunSpec, readings: Path) -> Follower:
        """Return what looks at the next run."""
        options, gpus = self.options, self.context.gpus
        listeners = [self._tell_course, *([options.listen] if options.listen is not None else [])]
        needed = options.listen is not None or bool(options.limits)
        energy = LiveEnergy(readings, spec.meters, gpus, time.monotonic_ns()) if needed else None
        window = (spec.measure_seconds, spec.measure_steps)
        return Follower(options.site, energy, dict(self.used), options.limits, listeners, window, options.total_steps)

    def tell(self, **news: Any) -> None:
        """Write the progress to the folder of the execution, for the dashboard. A failure does not stop the runs."""
        self.flight = self.flight.changed(**news, updated_at=datetime.now(UTC))
        with suppress(OSError):
            write_json(self.folder / files.PROGRESS, self.flight.model_dump(mode="json"))

    def _tell_course(self, course: Course) -> None:
        self._measured = f"{course.tally.seen} steps in {course.seconds:.4g} s"
        left = None if course.left is None else course.seconds + course.left
        self.tell(steps=course.tally.seen, steps_per_second=course.tally.steps_per_second, remaining_seconds=left)


@contextmanager
def session(options: MeasureOptions, machine: Machine, runs: Path, signals: Signals) -> Iterator[CommandRuns]:
    """Find or make the execution, start the meters and measure idle power once; stop the meters at the end.

    From then on `signals` are deferred, so that they cost no record. In an allocation, agents do that on its nodes.

    Raises EnvironmentProblem where records cannot be written, and Busy where the name is being measured; LaunchError where
    the agents do not start.
    """
    adopt_orphans()
    cluster = machine if isinstance(machine, Cluster) else None
    environment = describe(machine) if cluster is None else cluster.environment
    spec, gpus = specification(options, machine), _gpus(machine)
    if cluster is not None:
        check_for_nodes(options.argv, spec)
    programs = program_hashes(options.filled)
    execution, renewed = _execution(runs.absolute() / options.name, environment.fingerprint, programs)
    nodes = [] if cluster is None else cluster.nodes
    context = Context(options.name, execution.name, options.site, environment, gpus, nodes=nodes)
    with held(execution / files.LOCK, f"{options.name} is being measured by another process: choose another --name"):
        files.PROGRAMS.write(execution, {**(files.PROGRAMS.find(execution) or {}), **programs})
        sidecar = Sidecar(spec.meters, gpus).start() if spec.meters and cluster is None else None
        launcher = None
        try:
            if sidecar is not None:
                _ready(sidecar, options.idle_seconds, execution)
            if cluster is not None:
                launcher = SrunLauncher(
                    LaunchOptions(
                        execution, spec.meters, [COMMAND], gpus, idle_seconds=options.idle_seconds, machine=machine
                    )
                )
                launcher.start()
            flight = _flight(context, execution, options.repeats)
            runs_ = CommandRuns(options, spec, context, execution, sidecar, launcher, flight, signals, renewed=renewed)
            signals.deferred = True
            try:
                yield runs_
            finally:
                runs_.tell(to_do=runs_.flight.done, current=None, ended=True)
        finally:
            if sidecar is not None:
                sidecar.stop()
            if launcher is not None:
                launcher.close()


def _flight(context: Context, execution: Path, repeats: int) -> Flight:
    where = {"host": socket.gethostname(), "folder": str(execution)}
    now = datetime.now(UTC)
    return Flight(
        suite=context.suite, execution=context.execution, **where, to_do=repeats, began_at=now, updated_at=now
    )


def measure(options: MeasureOptions, machine: Machine, runs: Path) -> tuple[RunRecord, Path]:
    """Run the command once in a session of its own, see `CommandRuns.run`."""
    with Signals() as signals, session(options, machine, runs, signals) as opened:
        return opened.run()


def _execution(suite: Path, fingerprint: str, programs: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Return the folder of an execution, and which programs have changed since the newest one in this environment.

    That is the newest one where its programs are the same, and the name is not that of all commands without one.
    """
    same = [path for path in sorted(suite.glob(f"*-{fingerprint}")) if not (path / files.EXECUTION.name).exists()]
    folder, changed = suite / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{fingerprint}", list[str]()
    if same and suite.name != MEASURE:
        former = files.PROGRAMS.find(same[-1]) or {}
        changed = [word for word, value in programs.items() if former.get(word, value) != value]
        if not changed:
            return same[-1], []
    try:
        folder.mkdir(parents=True)
    except OSError as problem:
        raise EnvironmentProblem(
            f"cannot make the folder {folder} ({problem.strerror}); choose another one with --runs"
        ) from problem
    return folder, changed


def _next_repeat(execution: Path, spec: RunSpec) -> int:
    """Return the number of the next repeat of a configuration; folders of earlier ones may have been deleted."""
    numbers = (path.name.rpartition("-r")[2] for path in execution.glob(f"*-{spec.config_id}-r*"))
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _ready(sidecar: Sidecar, idle_seconds: float, execution: Path) -> None:
    """Wait for a meter that is still starting if there is no other, and measure idle power if hardware can be read."""
    hardware = sidecar.measured
    for name in (files.IDLE_TRACE, files.IDLE_TIMES.name):  # of an earlier call, perhaps before the machine was started
        (execution / name).unlink(missing_ok=True)
    sidecar.settle()
    if hardware and idle_seconds:
        sidecar.open(execution / files.IDLE_TRACE)
        start = time.monotonic_ns()
        time.sleep(idle_seconds)
        files.IDLE_TIMES.write(execution, files.IdleTimes(idle=(start, time.monotonic_ns())))
