"""What runs on every node: one process a suite, `python -P -m bench.run.node`, that starts runs warm.

It imports torch and the workloads once, starts the meter sidecar, and forks an agent for each run; the agent leads a
process group of its own and starts the ranks by torch's elastic multiprocessing, again by fork. This process itself never
touches a device and starts no thread, so what is forked from it is clean. `cold` runs go through plain torchrun instead.

Talk is one JSON object a line: on stdin `{"run": folder}` or `{"cancel": true}`, on stdout `{"ready": ...}` once and
`{"done": folder}` for each run, whose end is described in `exit.json`. End of stdin means that the runner is gone.
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
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import psutil

from bench import folder as files
from bench import registry
from bench.meters.sidecar import Sidecar
from bench.meters.windows import CODECARBON_SECONDS
from bench.process import adopt_orphans, die_with_parent
from bench.run.command import run as run_command
from bench.schema import COMMAND, RunSpec

CHANGED, STARTED_IN = "WATTBENCH_CHANGED_VARIABLES", "WATTBENCH_STARTED_IN"
"""Variables by which the launcher says what it changed in the environment (JSON, null: was not there), and where it was."""
_POLL_SECONDS = 0.02
"""How often the agent looks whether its ranks have ended."""
_FORK = multiprocessing.get_context("fork")


@dataclass
class Node:
    """The state of this process: where it answers, the sidecar, and the GPUs it may use."""

    answers: Any
    sidecar: Sidecar | None
    gpus: list[str]
    unread: bytes = b""

    def say(self, **message: Any) -> None:
        """Answer the runner with one line; a runner that is gone is noticed at the end of stdin."""
        try:
            self.answers.write(json.dumps(message) + "\n")
            self.answers.flush()
        except BrokenPipeError:
            return

    def next_line(self) -> dict[str, Any] | None:
        """Return the next message, blocking; None at the end of stdin."""
        while b"\n" not in self.unread:
            chunk = os.read(0, 65536)
            if not chunk:
                return None
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def cuda_facts() -> dict[str, Any]:
    """Ask CUDA in a forked process what it sees: the count of devices and, if none, torch's own reason."""
    receiver, sender = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_probe_cuda, args=(sender,))
    child.start()
    sender.close()
    facts: dict[str, Any] = {"count": 0, "error": "the CUDA driver did not answer within 60 s"}
    if receiver.poll(60):
        try:
            facts = receiver.recv()
        except EOFError:
            facts["error"] = "the process that asked the CUDA driver ended without an answer"
    child.kill()
    child.join()
    return facts


def _probe_cuda(sender: Connection) -> None:
    die_with_parent()
    import torch

    try:
        torch.cuda.init()
        sender.send({"count": torch.cuda.device_count(), "error": None})
    except (RuntimeError, AssertionError) as error:
        sender.send({"count": 0, "error": str(error).strip().splitlines()[0]})


def measure_idle(node: Node, seconds: float, *, with_context: bool) -> None:
    """Record the meters while nothing runs, then while a forked process holds a CUDA context on each GPU, `seconds` each."""
    if node.sidecar is None or not seconds or not {"nvml", "rapl"} & set(node.sidecar.live):
        return
    if "rapl" in node.sidecar.live:
        node.sidecar.wait(CODECARBON_SECONDS)  # its start is work for the processor
    folder = Path.cwd()
    (folder / files.IDLE_TRACE).unlink(missing_ok=True)  # of an earlier start of this execution
    node.sidecar.open(folder / files.IDLE_TRACE)
    times = files.IdleTimes(idle=_span(seconds))
    if node.gpus and with_context:
        receiver, sender = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_hold_contexts, args=(sender, node.gpus))
        child.start()
        sender.close()
        with suppress(EOFError):
            if receiver.poll(60) and receiver.recv():
                times = times.changed(context=_span(seconds))
        child.kill()
        child.join()
    node.sidecar.close()
    files.IDLE_TIMES.write(folder, times)


def _span(seconds: float) -> tuple[int, int]:
    start = time.monotonic_ns()
    time.sleep(seconds)
    return start, time.monotonic_ns()


def _hold_contexts(sender: Connection, gpus: list[str]) -> None:
    """Make a context on each GPU, say so, and wait to be ended."""
    die_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
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
    """Return the variables as they were where `bench` was typed, for commands of the user; the GPUs of the run are set."""
    changed = json.loads(os.environ.get(CHANGED, "{}"))
    environment = {name: value for name, value in os.environ.items() if name not in {*changed, CHANGED, STARTED_IN}}
    return environment | {name: value for name, value in changed.items() if value is not None}


def agent(spec: RunSpec, folder: Path, gpus: list[str]) -> None:
    """Lead one run: a session of its own, its log, its environment; then ranks by fork, or plain torchrun if cold."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    log = os.open(folder / files.WORKER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    (folder / files.SCRATCH).mkdir()
    os.environ |= {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus[: spec.devices_per_node]) if spec.device_type == "cuda" else "",
    }
    if spec.workload == COMMAND:
        sys.exit(run_command(spec, folder, user_environment(), Path(os.environ[STARTED_IN])))
    os.environ |= {
        "OMP_NUM_THREADS": str(spec.threads_per_device),
        "WATTBENCH_STORE": str(folder / files.SCRATCH / "store"),
        "WATTBENCH_STARTED_NS": str(time.monotonic_ns()),
        "PYTHONSAFEPATH": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # it would listen on all interfaces; ranks meet in a file
    }
    # One node: ranks meet on the loopback interface, whatever other interfaces there are.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if spec.cold:
        torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun.append(f"--log-dir={folder / files.SCRATCH}")
        worker = [f"--nproc-per-node={spec.devices_per_node}", "-m", "bench.train.worker", str(folder)]
        command = [*torchrun, *worker]
        sys.exit(subprocess.run(command, check=False, preexec_fn=die_with_parent).returncode)
    if failures := train(spec, folder):
        files.RANK_EXITS.write(folder, failures)
        sys.exit(1)


def train(spec: RunSpec, folder: Path) -> list[files.RankExit]:
    """Fork the ranks and wait for them; return those that failed, each with its exit code.

    It is what torchrun does on each node, without what makes several nodes meet: the rendezvous of torch's agent waits up to
    0.3 s at random before it begins, and keeps threads that ask a store all the time.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    ranks = range(spec.devices_per_node)
    size = str(spec.devices_per_node)
    context = start_processes(
        name="rank",
        entrypoint=_rank,
        args={rank: (str(folder),) for rank in ranks},
        envs={
            rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            for rank in ranks
        },
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / files.SCRATCH)),
        start_method="fork",
    )
    ended = context.wait(period=_POLL_SECONDS)
    failures = ended.failures if ended is not None else {}
    return [files.RankExit(rank=rank, exitcode=failure.exitcode) for rank, failure in sorted(failures.items())]


def _rank(folder: str) -> None:
    """Be a rank, in a session of its own as torchrun's are.

    Where the kernel shares processors between sessions first (autogroup), ranks in one session would get the share of one
    process between them as soon as anything else runs.
    """
    os.setsid()
    from bench.train.worker import main as worker_main

    worker_main(folder)


def _agent_after_fork(node: Node, spec: RunSpec, folder: Path) -> None:
    # A forked child holds copies of this process's pipes; it lets go of them, so that their ends are still noticed.
    if node.sidecar is not None:
        node.sidecar.forget()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    node.answers.close()
    agent(spec, folder, node.gpus)


def execute(node: Node, folder: Path) -> bool:
    """Do one run to its end, its time limit, or a cancel; write `exit.json`. Return False when the runner is gone."""
    spec = files.SPEC.read(folder)
    if node.sidecar is not None and spec.meters:
        node.sidecar.start()  # again, should it have died
        node.sidecar.open(files.RAW_METERS.path(folder, 0))
    started, start = datetime.now(UTC), time.monotonic_ns()
    process = _FORK.Process(target=_agent_after_fork, args=(node, spec, folder))
    process.start()
    how = _wait(node, process, spec.timeout_seconds)
    if how == "timeout":
        for stray in _descendants(node):
            with suppress(psutil.NoSuchProcess):
                stray.send_signal(signal.SIGUSR1)  # ranks print where they are
        time.sleep(0.5)
    _kill_group(process)  # nothing of the run is left, however it ended
    process.join()
    _kill_strays(node)
    end = time.monotonic_ns()
    shutil.rmtree(folder / files.SCRATCH, ignore_errors=True)
    if node.sidecar is not None and spec.meters:
        node.sidecar.close()
    ended = files.Exit(
        how=how,
        exitcode=process.exitcode,
        start_ns=start,
        end_ns=end,
        started_at=started,
        sidecar_error=node.sidecar.error if node.sidecar is not None else None,
    )
    files.EXIT.write(folder, ended)
    return how != "gone"


def _wait(node: Node, process: BaseProcess, timeout_seconds: float) -> Literal["ended", "timeout", "cancelled", "gone"]:
    """Block until the run ends by itself (`ended`), is late (`timeout`), is cancelled, or the runner is `gone`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        ready = wait([0, process.sentinel], timeout=max(0.0, deadline - time.monotonic()))
        if process.sentinel in ready:
            return "ended"
        if not ready:
            return "timeout"
        message = node.next_line()
        if message is None:
            return "gone"
        if message.get("cancel"):
            return "cancelled"


def _kill_group(process: BaseProcess) -> None:
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if process.is_alive():  # it had not come to lead a group yet
            process.kill()


def _descendants(node: Node) -> list[psutil.Process]:
    """Return the processes of the run, those that have left its group too."""
    kept = node.sidecar.pid if node.sidecar is not None else None
    return [child for child in psutil.Process().children(recursive=True) if child.pid != kept]


def _kill_strays(node: Node) -> None:
    """End what had left the group of the run: each rank has a session of its own."""
    strays = _descendants(node)
    for child in strays:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(strays, timeout=5)


def _import(workloads: list[str]) -> dict[str, Any]:
    """Import torch and what the workloads need, and return the versions; commands of the user need nothing."""
    facts: dict[str, Any] = {"pid": os.getpid()}
    if workloads:
        import torch
        import torch.distributed.elastic.multiprocessing

        import bench.train.worker  # noqa: F401

        for name in workloads:
            registry.preload(name)
        facts |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    return facts


def main() -> None:
    """Serve runs until stdin ends."""
    parser = argparse.ArgumentParser(prog="bench.run.node", description=__doc__)
    parser.add_argument("--meters", default="", help="comma-separated: nvml, rapl, codecarbon")
    parser.add_argument("--workloads", default="", help="comma-separated names whose modules are imported before runs")
    parser.add_argument("--gpus", default="", help="comma-separated UUIDs of the GPUs that runs may use")
    parser.add_argument("--idle-seconds", type=float, default=0.0, help="how long idle power is measured at the start")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    adopt_orphans()
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gpus = [uuid for uuid in args.gpus.split(",") if uuid]
    meters = [meter for meter in args.meters.split(",") if meter]
    node = Node(answers, Sidecar(meters, gpus).start() if meters else None, gpus)
    try:
        facts = _import([name for name in args.workloads.split(",") if name not in ("", COMMAND)])
        measure_idle(node, args.idle_seconds, with_context="torch" in facts)
        node.say(ready=facts | ({"cuda": cuda_facts()} if gpus and "torch" in facts else {}))
        while (message := node.next_line()) is not None:
            if "run" in message:
                go_on = execute(node, Path(message["run"]))
                node.say(done=message["run"])
                if not go_on:
                    break
    finally:
        if node.sidecar is not None:
            node.sidecar.stop()


if __name__ == "__main__":
    main()
