"""A Ray of its own: two nodes of two processors on this machine, started as users do, all in one folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from bench.machine.seat import SEAT
from tests.processes import BENCH, until, with_variable

OWNER = "WATTBENCH_TEST_RAY"
_NODE = f'''"""Two nodes of Ray are one machine: here each has a start of its own, as real ones have."""

import json
import os
from pathlib import Path

if "{SEAT}" in os.environ:
    _name, _read, _is = json.loads(os.environ["{SEAT}"])["name"], Path.read_text, Path.is_dir

    def _read_text(path, *arguments, **options):
        return _name * 4 if str(path) == "/proc/sys/kernel/random/boot_id" else _read(path, *arguments, **options)

    Path.read_text = _read_text
    Path.is_dir = lambda path: f"unseen-by-{{_name}}" not in str(path) and _is(path)
'''


def missing() -> str | None:
    """Say why there can be no Ray here; None if there can."""
    return None if find_spec("ray") else "NOT CHECKED ON RAY: it is not installed (pip install 'wattbench[ray]')"


@dataclass
class Ray:
    """A running Ray, of which RAY_ADDRESS is the `address`."""

    folder: Path
    address: str = ""
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def variables(self) -> dict[str, str]:
        """Variables of processes that use it."""
        path = f"{self.folder / 'python'}:{Path(__file__).parents[1]}"
        own = {"RAY_ADDRESS": self.address} if self.address else {}
        return os.environ | own | {"PYTHONPATH": path, OWNER: str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}

    def bench(self, folder: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start `bench ARGUMENTS` on its nodes."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([*BENCH, *arguments, "--launcher", "ray"], cwd=folder, env=self.variables, **pipes)

    def agents(self) -> list[psutil.Process]:
        """Return the agents of wattbench on the nodes, in order of the nodes, without what they forked."""
        found = {}
        for process in self._named("bench.run.agent"):
            with suppress(psutil.NoSuchProcess):
                parent, seat = process.parent(), process.environ().get(SEAT)
                if seat is not None and parent is not None and "bench.run.agent" not in parent.cmdline():
                    found[json.loads(seat)["number"]] = process
        return [found[number] for number in sorted(found)]

    def trains(self) -> bool:
        """Say whether a run of both nodes has its ranks."""
        agents = self.agents()
        return len(agents) == 2 and all(len(agent.children(recursive=True)) > 3 for agent in agents)

    def steps(self) -> list[psutil.Process]:
        """Return the processes that carry the lines of all nodes."""
        return self._named("bench.run.ray_step")

    def left(self) -> list[psutil.Process]:
        """Return the processes of steps that are still there."""
        return self._named("bench.run.agent", "bench.meters.sampler", "bench.run.ray_step", "ray::Carrier")

    def _named(self, *names: str) -> list[psutil.Process]:
        return with_variable(OWNER, str(self.folder), *names)

    def kill(self, *names: str) -> None:
        """Kill its processes with such names."""
        for process in self._named(*names):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def start(self) -> None:
        """Start both nodes."""
        (self.folder / "python").mkdir()
        (self.folder / "python" / "sitecustomize.py").write_text(_NODE)
        head = ["--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self.address = self._node("n1", head)
        self._node("n2", [f"--address={self.address}"])

    def _node(self, name: str, arguments: list[str]) -> str:
        """Start a node and wait until it is there; return the address that it tells others, if it is the first."""
        log = self.folder / f"{name}.log"
        size = ["--num-cpus=2", "--num-gpus=0", "--object-store-memory=80000000"]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-name={name}"]
        with log.open("wb") as output:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            self.daemons.append(
                subprocess.Popen([*command, *size, *arguments], env=self.variables, **pipes, start_new_session=True)
            )
        until(lambda: "Ray runtime started" in log.read_text() or self.daemons[-1].poll() is not None)
        if self.daemons[-1].poll() is not None:
            raise OSError(log.read_text())
        match = re.search(r"--address='(\S+)'", log.read_text())
        return match[1] if match is not None else ""

    def stop(self) -> None:
        """End it with all its processes."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.kill("")


@contextmanager
def nodes_of_ray() -> Iterator[Ray]:
    """Run a Ray in a new folder, with a name that is short enough for its sockets."""
    cluster = Ray(Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))
    try:
        try:
            cluster.start()
        except OSError as error:
            pytest.skip(f"NOT CHECKED ON RAY: it does not start here: {error}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)
