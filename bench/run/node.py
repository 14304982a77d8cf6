"""The process that carries out runs on a node, in one of two ways.

`python -P -m bench.run.node RUN_FOLDER` does one run: it reads `spec.json` and leaves everything else in the folder, first of
all `exit.json`. Its exit code says how the run ended: 0 well, 1 failed, 124 time limit, 130 cancelled (SIGINT or SIGTERM).

Without a folder it stays warm and does one run after another for the local launcher. It imports torch and the workloads once,
starts the meter sidecar, and forks an agent for each run. The agent leads a process group of its own and starts the ranks by
torch's elastic multiprocessing, again by fork. The node itself never touches a device and starts no thread, so its forks are
clean. `cold` runs use plain torchrun instead.

The launcher sends `{"run": folder}` or `{"cancel": true}`, see `bench.pipe`. The node sends `{"ready": facts}` once and
`{"done": folder}` after each run. The end of its input means that the launcher is gone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import psutil

from bench import folder as files
from bench import registry, vendors
from bench.machine.environment import find_machine
from bench.meters.sidecar import Sidecar
from bench.pipe import Pipe
from bench.process import adopt_orphans, die_with_parent, module_command, oom_kills
from bench.run.command import run as run_command
from bench.run.launcher import CHANGED, STARTED_IN, node_variables
from bench.run.meeting import Meeting
from bench.schema import COMMAND, RunSpec
from bench.suites.combine import why_impossible

EXIT_CODES = {"timeout": 124, "cancelled": 130}
"""Exit codes of the process after one run that did not end by itself."""
THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"),
)
"""Variables by which libraries are told how many threads to use."""
_POLL_SECONDS = 0.02
"""Seconds between two checks of whether the ranks have ended."""
STORE = "WATTBENCH_STORE"
"""Variable that says where ranks meet."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Place:
    """Which of the nodes of a run this is, and where its ranks meet those of the others.

    `store` is the address of the store of torch, which rank 0 serves on the socket `listener`. `interface` names the
    network interface towards the other nodes. A command meets at that address itself; its runner writes to `channel`, also
    what the command prints if that is to `show`.
    """

    number: int = 0
    store: tuple[str, int] | None = None
    listener: int | None = None
    interface: str = "lo"
    channel: int | None = None
    show: bool = False


@dataclass
class Node:
    """The state of this process: the pipe to the launcher, the sidecar, the GPUs that runs may use, and its place."""

    pipe: Pipe
    sidecar: Sidecar | None
    gpus: list[str]
    place: Place = Place()


@contextmanager
def _forked(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Call a function in a forked process; yield what it sends within 60 s, or None, and then kill the process."""
    receiver, sender = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=target, args=(sender, *arguments))
    child.start()
    sender.close()
    answer = None
    with suppress(EOFError):
        answer = receiver.recv() if receiver.poll(60) else None
    try:
        yield answer
    finally:
        child.kill()
        child.join()


def gpu_facts() -> dict[str, Any]:
    """Ask torch in a forked process for its number of GPUs; if there are none, also for its reason.

    `spoiled`: the node itself has initialised the GPUs, so that no process that it forks can use them.
    """
    with _forked(_probe_gpus) as facts:
        return facts or {"count": 0, "error": "the driver of the GPUs did not answer", "spoiled": False}


def _probe_gpus(sender: Connection) -> None:
    die_with_parent()
    import torch

    facts = {"count": 0, "error": None, "spoiled": torch.cuda._is_in_bad_fork()}
    try:
        torch.cuda.init()
        sender.send(facts | {"count": torch.cuda.device_count()})
    except (RuntimeError, AssertionError) as error:
        sender.send(facts | {"error": str(error).strip().splitlines()[0]})


def measure_idle(node: Node, folder: Path, seconds: float, *, with_context: bool) -> None:
    """Record the meters in a folder for `seconds` while nothing runs, and again with a context of torch on each GPU."""
    if node.sidecar is None or not seconds or not node.sidecar.measured:
        return
    (folder / files.IDLE_TRACE).unlink(missing_ok=True)  # from an earlier start of this execution
    node.sidecar.open(folder / files.IDLE_TRACE)
    times = files.IdleTimes(idle=_span(seconds))
    if node.gpus and with_context:
        with _forked(_hold_contexts, node.gpus) as ready:
            times = times.changed(context=_span(seconds)) if ready else times
    node.sidecar.close()
    files.IDLE_TIMES.write(folder, times)


def _span(seconds: float) -> tuple[int, int]:
    start = time.monotonic_ns()
    time.sleep(seconds)
    return start, time.monotonic_ns()


def _hold_contexts(sender: Connection, gpus: list[str]) -> None:
    """Make a context on each GPU, report it, and wait to be killed."""
    die_with_parent()
    os.environ |= vendors.visible(gpus)
    import torch

    try:
        for index in range(len(gpus)):
            torch.zeros(1, device=f"cuda:{index}")
            torch.cuda.synchronize(index)
        sender.send(True)
    except (RuntimeError, AssertionError):
        sender.send(False)
    signal.pause()


def user_environment() -> dict[str, str]:
    """Return the variables as they were where `bench` started, for commands of the user, with the GPUs of the run set."""
    changed = json.loads(os.environ.get(CHANGED, "{}"))
    environment = {name: value for name, value in os.environ.items() if name not in {*changed, CHANGED, STARTED_IN}}
    return environment | {name: value for name, value in changed.items() if value is not None}


def thread_variables(spec: RunSpec) -> dict[str, str]:
    """Return the variables that fix the threads of a command; none where its suite leaves them open."""
    return {} if spec.threads_per_device is None else dict.fromkeys(THREADS, str(spec.threads_per_device))


def agent(spec: RunSpec, folder: Path, gpus: list[str], place: Place) -> None:
    """Lead one run in a session of its own, with its log and environment: fork the ranks, or use torchrun if cold."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    log = os.open(folder / files.WORKER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    (folder / files.SCRATCH).mkdir()
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    os.environ |= vendors.visible(gpus[: spec.devices_per_node] if spec.device_type == "gpu" else [])
    if spec.workload == COMMAND:
        more = {name: getattr(place, name) for name in ("interface", "channel", "show")}
        meeting = Meeting(place.number, spec.num_nodes, *(place.store or ()), **more)
        variables = user_environment() | thread_variables(spec)
        sys.exit(run_command(spec, folder, variables, Path(os.environ[STARTED_IN]), meeting))
    os.environ |= {
        "OMP_NUM_THREADS": str(spec.threads),
        STORE: json.dumps([*place.store, place.listener]) if place.store else str(folder / files.SCRATCH / "store"),
        "WATTBENCH_STARTED_NS": str(time.monotonic_ns()),
        "WATTBENCH_PROCESSORS": json.dumps(psutil.Process().cpu_affinity() if psutil.LINUX else []),
        "PYTHONSAFEPATH": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # it would listen on all interfaces; ranks meet through a file
    }
    # On one node, ranks meet on the loopback interface, whatever other interfaces exist.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", place.interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", place.interface)
    if spec.cold:
        torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun.append(f"--log-dir={folder / files.SCRATCH}")
        torchrun += [f"--nproc-per-node={spec.devices_per_node}", f"--max-restarts={spec.max_restarts}"]
        command = [*torchrun, *module_command("bench.train.worker", str(folder))[2:]]
        sys.exit(subprocess.run(command, check=False, preexec_fn=die_with_parent).returncode)
    failures, kills = list[files.RankExit](), oom_kills()
    for restart in range(spec.max_restarts + 1):
        failures = train(spec, folder, place.number * spec.devices_per_node, restart)
        if not _lost(folder, failures, kills):
            break
    if failures:
        files.RANK_EXITS.write(folder, failures)
        sys.exit(1)


def _lost(folder: Path, failures: list[files.RankExit], kills: int | None) -> bool:
    """Whether a rank was lost. What failed by itself, or was killed for lack of memory, would fail again.

    Ranks that lost their peer may end before torch sees which one it was.
    """
    if kills is not None and (oom_kills() or 0) > kills:
        return False
    errors = files.read_errors(folder)
    return any(rank.exitcode < 0 for rank in failures) or (
        bool(failures and errors) and all(error.kind == "peer" for error in errors)
    )


def train(spec: RunSpec, folder: Path, first: int, restart: int = 0) -> list[files.RankExit]:
    """Fork the ranks of this node, from the `first` on, and wait; return those that failed, each with its exit code.

    It is the number of the `restart` after ranks were lost, as torchrun counts them.

    torchrun does the same on each node, and adds a rendezvous of the nodes. The rendezvous of torch's agent waits up to 0.3 s
    at random before it begins, and keeps threads that poll a store all the time.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    sizes = {"WORLD_SIZE": str(spec.world_size), "LOCAL_WORLD_SIZE": str(spec.devices_per_node)}
    sizes |= {"TORCHELASTIC_RESTART_COUNT": str(restart)}
    if restart:  # a file of their own in which they meet
        sizes |= {STORE: f"{os.environ[STORE]}-{restart}"}
    context = start_processes(
        name="rank",
        entrypoint=_rank,
        args={rank: (str(folder),) for rank in range(spec.devices_per_node)},
        envs={
            rank: {"RANK": str(first + rank), "LOCAL_RANK": str(rank), **sizes} for rank in range(spec.devices_per_node)
        },
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / files.SCRATCH)),
        start_method="fork",
    )
    ended = context.wait(period=_POLL_SECONDS)
    failures = ended.failures if ended is not None else {}
    return [files.RankExit(rank=first + rank, exitcode=failure.exitcode) for rank, failure in sorted(failures.items())]


def _rank(folder: str) -> None:
    """Run as a rank in a session of its own, as torchrun does.

    A kernel with autogroup shares processors between sessions first. Ranks in one session would together get the share of
    one process as soon as another program runs.
    """
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # not the agent's, which makes an exception of the signal
    from bench.train.worker import main as worker_main

    worker_main(folder)


def _agent_after_fork(node: Node, spec: RunSpec, folder: Path) -> None:
    # A forked child holds copies of this process's pipes and closes them, so that their ends are still noticed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if node.sidecar is not None:
        node.sidecar.forget()
    node.pipe.close()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    agent(spec, folder, node.gpus, node.place)


@contextmanager
def stops_noticed() -> Iterator[list[int]]:
    """Yield a list that is not empty once this process, and those of its job, have been stopped and continue."""
    stops = list[int]()
    before = signal.signal(signal.SIGCONT, lambda number, _: stops.append(number))
    try:
        yield stops
    finally:
        signal.signal(signal.SIGCONT, before)


def execute(node: Node, folder: Path) -> files.Exit:
    """Do one run until its end, its time limit, or a cancel; write `exit.json` and return its content."""
    spec = files.SPEC.read(folder)
    if node.sidecar is not None and spec.meters:
        node.sidecar.start()  # again, if it has died
        node.sidecar.open(files.RAW_METERS.path(folder, 0))
    kills, started, start = oom_kills(), datetime.now(UTC), time.monotonic_ns()
    process = _FORK.Process(target=_agent_after_fork, args=(node, spec, folder))
    with stops_noticed() as stops:
        process.start()
        how = _wait(node, process, folder, spec.timeout_seconds)
    if how == "timeout":
        for stray in _descendants(node):
            with suppress(psutil.NoSuchProcess):
                stray.send_signal(signal.SIGUSR1)  # ranks print their stacks
        time.sleep(0.5)
    _kill_group(process)  # no process of the run survives, however it ended
    process.join()
    _kill_strays(node)
    end = time.monotonic_ns()
    shutil.rmtree(folder / files.SCRATCH, ignore_errors=True)
    if node.sidecar is not None and spec.meters:
        node.sidecar.close()
    error = node.sidecar.error if node.sidecar is not None else None
    ended = files.Exit(
        how=how,
        exitcode=process.exitcode,
        start_ns=start,
        end_ns=end,
        started_at=started,
        sidecar_error=error,
        killed_for_memory=kills is not None and (oom_kills() or 0) > kills,
        suspended=bool(stops),
    )
    files.EXIT.write(folder, ended)
    return ended


def _wait(
    node: Node, process: BaseProcess, folder: Path, timeout_seconds: float
) -> Literal["ended", "timeout", "cancelled", "gone"]:
    """Block until the run `ended` by itself, reached its `timeout`, was `cancelled`, or until the launcher is `gone`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        if not node.pipe.pending:
            ready = wait([node.pipe.fileno(), process.sentinel], timeout=max(0.0, deadline - time.monotonic()))
            if process.sentinel in ready:
                return "ended"
            if not ready:
                return "timeout"
        try:
            message = node.pipe.receive()
        except EOFError:
            return "gone"
        if message is not None and message.get("cancel"):
            return "cancelled"
        if message is not None and message.get("late"):  # another node has reached the limit: ranks show where they are
            return "timeout"
        asked = folder / files.ASKED_TO_END
        if message is not None and message.get("end") and not asked.exists():  # a command ends on all nodes
            asked.write_text(message.get("signal", ""))


def _kill_group(process: BaseProcess) -> None:
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if process.is_alive():  # it does not lead a group yet
            process.kill()


def _descendants(node: Node) -> list[psutil.Process]:
    """Return all processes of the run, including those that left its group."""
    kept = node.sidecar.pid if node.sidecar is not None else None
    return [child for child in psutil.Process().children(recursive=True) if child.pid != kept]


def _kill_strays(node: Node) -> None:
    """Kill processes that left the group of the run: each rank has a session of its own."""
    strays = _descendants(node)
    for child in strays:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(strays, timeout=5)


def import_all(workloads: list[str]) -> dict[str, Any]:
    """Import torch and what the workloads need, and return the versions. Commands of the user need nothing.

    No GPU is visible meanwhile. Some libraries ask GPUs for their abilities when they are imported, and a process that has
    initialised a GPU cannot fork others that use it. What torch remembers about GPUs from this time is forgotten.
    """
    facts: dict[str, Any] = {"pid": os.getpid()}
    workloads = [name for name in workloads if name != COMMAND]
    if workloads:
        visible = {name: os.environ[name] for name in vendors.HIDDEN if name in os.environ}
        os.environ |= vendors.HIDDEN
        import torch
        import torch.distributed.elastic.multiprocessing
        from torch.utils import _triton as triton

        import bench.train.worker  # noqa: F401

        for name in workloads:
            registry.preload(name)
        for name in vendors.HIDDEN:
            del os.environ[name]
        os.environ |= visible
        triton.has_triton.cache_clear()
        facts |= {"torch": torch.__version__}
    return facts


def run_one(folder: Path, gpus: list[str]) -> int:
    """Do the run of a folder from its `spec.json`, without a launcher's pipe. Return the exit code for this process.

    Without `gpus` it may use those that are visible and free. Raises SystemExit for too few GPUs and impossible runs.
    """
    spec = files.SPEC.read(folder)
    if reason := why_impossible(spec):
        sys.exit(f"{folder} cannot be done: {reason}")
    files.clear_results(folder)
    if CHANGED not in os.environ:
        os.environ |= node_variables(spec.threads)
    if spec.device_type == "gpu":
        gpus = gpus or [gpu.uuid for gpu in find_machine()[0].free_gpus]
        if len(gpus) < spec.devices_per_node:
            sys.exit(
                f"{folder} needs {spec.devices_per_node} GPUs, but only {len(gpus)} are free here: see bench doctor"
            )
    cancel = Pipe(*os.pipe())  # a signal asks for the end of the run as a launcher does
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: cancel.send(cancel=True))
    node = Node(cancel, Sidecar(spec.meters, gpus).start() if spec.meters else None, gpus)
    try:
        import_all([spec.workload])
        if node.sidecar is not None:
            node.sidecar.settle()
        ended = execute(node, folder.absolute())
    finally:
        if node.sidecar is not None:
            node.sidecar.stop()
    return EXIT_CODES.get(ended.how, 1 if ended.exitcode else 0)


def prepare(node: Node, workloads: list[str], folder: Path, idle_seconds: float) -> dict[str, Any]:
    """Import what runs need and measure idle power into a folder; return the facts of this node."""
    facts = import_all(workloads)
    if node.sidecar is not None:
        node.sidecar.settle()
    measure_idle(node, folder, idle_seconds, with_context="torch" in facts)
    return facts | ({"gpus": gpu_facts()} if node.gpus and "torch" in facts else {})


def serve(node: Node, workloads: list[str], idle_seconds: float) -> None:
    """Prepare for runs, and do those that the launcher sends until it closes the pipe."""
    node.pipe.send(ready=prepare(node, workloads, Path.cwd(), idle_seconds))
    with suppress(EOFError):
        while message := node.pipe.receive():
            if "run" in message:
                how = execute(node, Path(message["run"])).how
                node.pipe.send(done=message["run"])
                if how == "gone":
                    return


def split_names(text: str) -> list[str]:
    """Return the names in a text, which are separated by commas."""
    return [name for name in text.split(",") if name]


def main() -> int:
    """Do one run, or serve runs until the input ends. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.run.node", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="do the run described by spec.json in this folder, and end"
    )
    parser.add_argument("--gpus", default="", help="UUIDs of the GPUs that runs may use, separated by commas")
    warm = parser.add_argument_group("options of a node that stays warm; a single run takes them from its spec.json")
    warm.add_argument("--meters", default="", help="names of meters, separated by commas")
    warm.add_argument("--workloads", default="", help="workloads to import before the first run, separated by commas")
    warm.add_argument("--idle-seconds", type=float, default=0.0, help="seconds of measuring idle power at the start")
    args = parser.parse_args()
    if args.folder is not None and not (args.folder / files.SPEC.name).is_file():
        parser.error(f"{args.folder} has no {files.SPEC.name}")
    adopt_orphans()
    gpus, meters = split_names(args.gpus), split_names(args.meters)
    if args.folder is not None:
        return run_one(args.folder, gpus)
    pipe = Pipe(0, os.dup(1))
    os.dup2(2, 1)  # what libraries print must not be mistaken for a message
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node = Node(pipe, Sidecar(meters, gpus).start() if meters else None, gpus)
    try:
        serve(node, split_names(args.workloads), args.idle_seconds)
    finally:
        if node.sidecar is not None:
            node.sidecar.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
