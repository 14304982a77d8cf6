"""A Slurm of its own on the loopback interface: controller, munge and virtual nodes, all of this user, in one folder."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.processes import BENCH, until, with_variable

SBIN = "/usr/sbin:/sbin"
TOOLS = ("slurmctld", "slurmd", "munged", "srun")
INSTALL = "apt-get install slurm-wlm munge"


def missing() -> str | None:
    """Say why there can be no Slurm here; None if there can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:{SBIN}") is None]
    return f"NOT CHECKED ON SLURM: no {', '.join(lacking)} here ({INSTALL})" if lacking else None


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Slurm:
    """A running Slurm with two virtual nodes of two processors."""

    folder: Path
    daemons: dict[str, psutil.Process] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """Variables of processes that use it: nodes of one machine that look like several."""
        inner = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SBIN}"}
        return os.environ | inner | {"PYTHONPATH": f"{self.folder / 'python'}:{Path(__file__).parents[1]}"}

    def call(self, *command: str) -> str:
        """Return what a command of Slurm prints."""
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def bench(self, folder: Path, *arguments: str, nodes: int = 2, minutes: int = 10) -> subprocess.Popen[str]:
        """Start `bench ARGUMENTS` in an allocation of its own."""
        salloc = ["salloc", "--quiet", f"--nodes={nodes}", "--exclusive", f"--time={minutes}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*salloc, *BENCH, *arguments], cwd=folder, env=self.variables, **pipes)

    def login(self, folder: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start `bench ARGUMENTS` as on a login node."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([*BENCH, *arguments], cwd=folder, env=self.variables, **pipes)

    def drivers(self) -> list[psutil.Process]:
        """Return the processes of jobs that do the runs of a block."""
        return self.processes("bench.jobs.block")

    def job(self) -> str:
        """Return the id of the job that runs."""
        return str(until(lambda: self.call("squeue", "-h", "-t", "RUNNING", "-o", "%i").strip()))

    def agents(self) -> list[psutil.Process]:
        """Return the agents of wattbench on the nodes, in order of the nodes, without what they forked."""
        found = {}
        for process in self.processes("bench.run.agent"):
            with suppress(psutil.NoSuchProcess):
                parent, number = process.parent(), process.environ().get("SLURM_NODEID")  # none where it is ending
                if parent is not None and parent.name() == "slurmstepd" and number is not None:
                    found[int(number)] = process
        return [found[number] for number in sorted(found)]

    def trains(self) -> bool:
        """Say whether a run of both nodes has its ranks."""
        agents = self.agents()
        return len(agents) == 2 and all(len(agent.children(recursive=True)) > 3 for agent in agents)

    def left(self) -> list[str]:
        """Return the processes of jobs and steps that are still there."""
        daemons = {daemon.pid for daemon in self.daemons.values()}
        found = self.processes("bench.run.agent", "bench.meters.sampler", "bench.jobs.block", "slurmstepd")
        return [str(each) for each in found if each.pid not in daemons]

    def processes(self, *names: str) -> list[psutil.Process]:
        """Return the processes that use this Slurm and have one of the names in their command line."""
        return with_variable("SLURM_CONF", str(self.folder / "slurm.conf"), *names)

    def start(self) -> None:
        """Write the configuration and start the daemons; wait until the nodes are idle."""
        for name in ("state", "munge", "log", "python", "n1", "n2"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "python" / "sitecustomize.py").write_text(_BOOT_ID)
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        end = time.monotonic() + 60
        while not (munge / "socket").exists():
            assert time.monotonic() < end, "munge opens no socket"
            time.sleep(0.1)
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        end = time.monotonic() + 60
        while self._idle() < 2:
            assert time.monotonic() < end, "its nodes do not become idle"
            time.sleep(0.1)

    def _idle(self) -> int:
        try:
            return len(set(self.call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()))
        except subprocess.SubprocessError:
            return 0

    def _daemon(self, *command: str) -> None:
        log = (self.folder / "log" / f"{len(self.daemons)}-{command[0]}").open("wb")
        with log:
            process = subprocess.Popen(
                command, env=self.variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons[" ".join(command[:4])] = psutil.Process(process.pid)

    def stop(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(["scancel", "-u", getpass.getuser()], env=self.variables, timeout=60, check=False)
        time.sleep(0.5)
        for daemon in reversed(self.daemons.values()):
            with suppress(psutil.NoSuchProcess):  # a test has killed it
                daemon.terminate()
        _, alive = psutil.wait_procs(self.daemons.values(), timeout=10)
        for process in (*alive, *self.processes("slurmstepd")):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _configuration(self) -> str:
        controller, *ports = _ports(3)
        user = getpass.getuser()
        nodes = "".join(
            f"NodeName=n{k} NodeHostName=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 State=UNKNOWN\n"
            for k, port in enumerate(ports, 1)
        )
        return f"""ClusterName=tests
FirstJobId={controller * 1_000}
MaxJobId=67043328
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge/socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
SlurmdTimeout=30
InactiveLimit=0
KillWait=5
MessageTimeout=20
SlurmdParameters=config_overrides
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
{nodes}PartitionName=urgent Nodes=ALL PriorityTier=100 PreemptMode=OFF State=UP
PartitionName=short Nodes=ALL MaxTime=2 State=UP
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=30 State=UP
"""


_BOOT_ID = '''"""Virtual nodes are one machine: here each has a start of its own, as real ones have."""

import os
from pathlib import Path

if "SLURMD_NODENAME" in os.environ:
    _read = Path.read_text

    def _read_text(path, *arguments, **options):
        if str(path) == "/proc/sys/kernel/random/boot_id":
            return os.environ["SLURMD_NODENAME"] * 4
        return _read(path, *arguments, **options)

    Path.read_text = _read_text
'''


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Run a Slurm in a new folder."""
    cluster = Slurm(folder)
    try:
        try:
            cluster.start()
        except (AssertionError, OSError) as error:
            logs = "\n".join(path.read_text(errors="replace")[-300:] for path in (folder / "log").glob("*"))
            pytest.skip(f"NOT CHECKED ON SLURM: it does not start here: {error}\n{logs}")
        yield cluster
    finally:
        cluster.stop()
