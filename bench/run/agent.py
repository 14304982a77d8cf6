"""The process of one node in an allocation of several: it does its part of the runs that the launcher sends to all nodes.

`python -P -m bench.run.agent [options] EXECUTION`, started once on each node by a step of Slurm or Ray. It works like a
node of one machine (bench.run.node), in a folder of its own on the node: while a run is measured nothing is written to the
shared folder of the execution. At the end it delivers its files there, `node-<number>.json` last.

The launcher sends `{"run": folder, "nodes": n, "store": [host, port], "show": false}`, before a run on several nodes
`{"listen": true}`; `{"cancel": true}`, `{"late": true}` where another node has reached the time limit, or `{"end": true}`
where the first one has reached the limit of a command, of which its runner tells by `{"limit": folder}`, or with the name of
a `signal`, as if by that. The runner sends what a command prints as `{"output": base64}` where that is to `show`. An agent
answers with its number as `node`: `{"ready": facts}` once, `{"listens": [host, port]}` (the first node), and with the name of
the folder of the run `{"ended": name}`, then `{"done": name, "how": "ended", "well": true}` when its files are delivered.
Lines stay short, see
`bench.machine.cluster.step`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from bench import folder as files
from bench.files import Busy, held
from bench.machine.environment import find_machine
from bench.machine.network import network_facts
from bench.machine.seat import Seat, find_seat
from bench.meters.sidecar import Sidecar
from bench.pipe import Pipe
from bench.process import adopt_orphans, boot_id
from bench.run.node import Node, Place, execute, prepare, split_names
from bench.run.nodes import well
from bench.schema import COMMAND

LEFT_SECONDS = 15
"""How long an agent waits for the end of what another one of the same job has started."""


def own_address(peer: str, interface: str | None = None) -> tuple[str, str]:
    """Return the address by which a peer reaches this node, and the name of its network interface. Raises OSError.

    With an `interface`, its address, whether or not that is the usual way.
    """
    if interface is not None:
        every = psutil.net_if_addrs().get(interface, [])
        own = next((each.address for each in every if each.family in (socket.AF_INET, socket.AF_INET6)), None)
        if own is None:
            names = ", ".join(sorted(psutil.net_if_addrs()))
            raise OSError(f"cluster.network_interface {interface!r} has no address on this node; it has {names}")
        return own.partition("%")[0], interface
    family, _, _, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing; the kernel chooses the interface
        own = str(probe.getsockname()[0])
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            return own, name
    raise OSError(f"no network interface of this node has the address {own}, by which {peer} would reach it")


@dataclass
class Agent:
    """The state of this process: its seat among the nodes, its folder on this node, and where it can be reached."""

    node: Node
    seat: Seat
    shared: Path
    scratch: Path
    address: str
    interface: str
    listener: socket.socket | None = None
    ending: bool = False

    @property
    def number(self) -> int:
        """Number of this node."""
        return self.seat.number

    def end(self, number: int, frame: Any) -> None:
        """Handle a signal that ends the step: the run under way ends as if the launcher were gone."""
        self.ending = True
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, self.node.pipe.fileno())

    def listen(self) -> list[Any]:
        """Open the socket on which the ranks of the next run meet; return its address and port."""
        self.hang_up()
        family = socket.getaddrinfo(self.address, None)[0][0]
        self.listener = socket.create_server((self.address, 0), family=family)
        self.listener.set_inheritable(True)
        return [self.address, self.listener.getsockname()[1]]

    def hang_up(self) -> None:
        """Close that socket."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def run(self, folder: Path, store: tuple[str, int] | None, *, show: bool) -> files.Exit:
        """Do the part of this node of a run, and deliver its files."""
        here = self.scratch / folder.name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for name in (files.SPEC.name, files.NEEDS.name):
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, here / name)
        channel = None
        if files.SPEC.read(here).workload == COMMAND:
            self.hang_up()  # the command itself listens on this port
            channel = self.node.pipe.second()
        listener = self.listener.fileno() if self.listener is not None else None
        place = Place(self.number, store, listener, self.interface) if store else Place()
        self.node.place = replace(place, channel=channel, show=show and self.number == 0)
        ended = execute(self.node, here)
        if channel is not None:
            os.close(channel)
        self.node.pipe.send(node=self.number, ended=folder.name)
        if self.ending:
            ended = ended.changed(how="node_died", message="the step was ended (SIGTERM)")
        self.hang_up()
        self.deliver(here, folder, ended)
        shutil.rmtree(here, ignore_errors=True)
        return ended

    def deliver(self, here: Path, folder: Path, ended: files.Exit) -> None:
        """Copy what a run left on this node to its shared folder; last of all, how it ended here."""
        spec, ranks = files.SPEC.read(here), files.RANK_EXITS.find(here) or []
        kept = {files.RAW_METERS.path(here, 0): files.RAW_METERS.path(folder, self.number)}
        kept |= {path: folder / path.name for path in (*files.ERRORS.paths(here), *files.STACKS.paths(here))}
        log = here / files.WORKER_LOG
        if self.number == 0:
            names = (files.RESULT.name, files.STEPS.path(here, 0).name, files.WORKER_LOG, files.CHECKPOINT)
            kept |= {here / name: folder / name for name in names}
        elif not well(ended) and ended.how != "cancelled":
            kept[log] = files.LOGS.path(folder, self.number)
        if spec.workload == COMMAND:  # it leaves more; of several nodes each has a folder of its own, but for the first
            own, ours = folder, {files.SPEC.name, files.ASKED_TO_END}
            if spec.num_nodes > 1:
                ours |= {files.RESULT.name, files.PARTIAL.name, files.EXIT.name, files.RAW_METERS.path(here, 0).name}
                kept.pop(here / files.RESULT.name, None)  # that of all nodes is made of what each leaves
            if self.number > 0:
                own = files.NODE_FOLDERS.path(folder, self.number)
                own.mkdir()
                ours |= {path.name for path in kept} | {log.name}
            kept |= {path: own / path.name for path in here.iterdir() if path.name not in ours}
        for source, target in kept.items():
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copyfile(source, target)
        end = files.NodeEnd(
            node=self.number,
            name=self.seat.name,
            boot_id=boot_id(),
            exit=ended,
            ranks=ranks,
            network=network_facts(self.interface) if spec.num_nodes > 1 else None,
            timeline=files.TIMELINE.find(here),
        )
        files.write_node_end(folder, end)


def serve_runs(agent: Agent, workloads: list[str], idle_seconds: float) -> None:
    """Prepare for runs, and do those that the launcher sends until it closes the pipe."""
    pipe, number = agent.node.pipe, agent.number
    if not agent.shared.is_dir():
        where = f"{agent.shared} is not seen by {agent.seat.name}"
        pipe.send(node=number, refused=f"{where}: choose a folder that all nodes share, with --runs")
        return
    idle = agent.shared if number == 0 else files.NODE_FOLDERS.path(agent.shared, number)
    idle.mkdir(exist_ok=True)
    facts = prepare(agent.node, workloads, agent.scratch, idle_seconds)
    for name in (files.IDLE_TRACE, files.IDLE_TIMES.name):
        with suppress(FileNotFoundError):
            shutil.copyfile(agent.scratch / name, idle / name)
    pipe.send(node=number, ready=facts | {"step": agent.seat.step})
    with suppress(EOFError):
        while message := pipe.receive():
            if "listen" in message and number == 0:
                pipe.send(node=number, listens=agent.listen())
            elif "run" in message and number < message["nodes"]:
                ended = agent.run(Path(message["run"]), message["store"], show=message["show"])
                pipe.send(node=number, done=Path(message["run"]).name, how=ended.how, well=well(ended))
                if ended.how == "gone" or agent.ending:
                    return


@contextmanager
def _alone(lock: Path, busy: str) -> Iterator[None]:
    """Be the only agent of a job on this node; what a killed one has started may need seconds to end. Raises Busy."""
    with ExitStack() as stack:
        for left in reversed(range(LEFT_SECONDS)):
            try:
                stack.enter_context(held(lock, busy))
                break
            except Busy:
                if not left:
                    raise
                time.sleep(1)
        yield
        lock.unlink(missing_ok=True)


def main() -> int:
    """Serve runs until the input ends. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.run.agent", description=__doc__)
    parser.add_argument("execution", type=Path, help="folder of the execution, which all nodes share")
    parser.add_argument("--addresses", required=True, help="addresses of all nodes in their order, separated by commas")
    parser.add_argument("--gpus", action="store_true", help="runs may use the free GPUs of this node")
    parser.add_argument("--meters", default="", help="names of meters, separated by commas")
    parser.add_argument("--workloads", default="", help="workloads to import before the first run, separated by commas")
    parser.add_argument("--interface", help="network interface on which ranks meet")
    parser.add_argument("--idle-seconds", type=float, default=0.0, help="seconds of measuring idle power at the start")
    args = parser.parse_args()
    adopt_orphans()
    seat, addresses, meters = find_seat(), split_names(args.addresses), split_names(args.meters)
    gpus = [gpu.uuid for gpu in find_machine()[0].free_gpus] if args.gpus else []
    pipe = Pipe(0, os.dup(1))
    os.dup2(2, 1)  # what libraries print must not be mistaken for a message
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher
    mine, interface = "127.0.0.1", "lo"
    if len(addresses) > 1:
        mine, interface = own_address(addresses[1 if seat.number == 0 else 0], args.interface)
    base, prefix = Path(seat.base), f"wattbench-{seat.job}-{seat.number}-"
    with ExitStack() as stack:
        try:
            stack.enter_context(
                _alone(base / f"{prefix}lock", f"another bench measures on {seat.name} in job {seat.job}")
            )
        except Busy as busy:
            pipe.send(node=seat.number, refused=f"{busy}: wait until it has ended")
            return 0
        for left in base.glob(f"{prefix}*/"):  # by an agent that was killed
            shutil.rmtree(left, ignore_errors=True)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=base))
        os.chdir(scratch)
        node = Node(pipe, Sidecar(meters, gpus).start() if meters else None, gpus)
        agent = Agent(node, seat, args.execution, Path(scratch), mine, interface)
        signal.signal(signal.SIGTERM, agent.end)
        try:
            serve_runs(agent, split_names(args.workloads), args.idle_seconds)
        finally:
            if node.sidecar is not None:
                node.sidecar.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
