"""The process that starts another one on each node of Ray and carries its lines, as `srun` does on nodes of Slurm.

`python -P -m bench.run.ray_step [options] -- MODULE ARGUMENTS`. An actor on each node holds all its processors and GPUs and
starts the module there. The input of this process goes to all of them; what they write comes out here, line by line. Whoever
ends with an error ends all. Without `--on` it chooses the nodes and tells of them in its first line.

This is the only place that imports Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from math import inf
from typing import Any, BinaryIO

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bench.machine.seat import SEAT
from bench.process import adopt_orphans, module_command, signal_name
from bench.run.launcher import CHANGED, STARTED_IN
from bench.run.node import split_names

READY_SECONDS, END_SECONDS, TERM_SECONDS = 60.0, 6.0, 2.0
"""The longest that nodes may take to become free, processes to end when their input does, and after a signal."""
_OF_WORKERS = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT", "RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_CLIENT_MODE")
"""Variables that Ray sets for its own workers."""


class StepProblem(Exception):
    """The step cannot be done; the message says why and what to do."""


class Carrier:
    """The actor on a node: it starts a module of wattbench as a process and carries its lines."""

    def __init__(self, words: list[str], seat: dict[str, Any], variables: dict[str, str]) -> None:
        adopt_orphans()
        own = {name: value for name, value in os.environ.items() if name not in _OF_WORKERS}
        if CHANGED in variables:  # here they were something else
            names = json.loads(variables[CHANGED])
            variables = variables | {CHANGED: json.dumps({name: own.get(name) for name in names})}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            module_command(*words),
            env=own | variables | {SEAT: json.dumps(seat)},
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr  # noqa: S101, PT018  all are pipes
        self._input: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._lines: queue.Queue[tuple[int, bytes] | None] = queue.Queue(1000)
        streams = ((1, self._process.stdout), (2, self._process.stderr))
        self._readers = [threading.Thread(target=self._carry, args=each, daemon=True) for each in streams]
        for thread in (*self._readers, threading.Thread(target=self._wait, daemon=True)):
            thread.start()

    def _carry(self, descriptor: int, stream: Iterable[bytes]) -> None:
        for line in stream:
            self._lines.put((descriptor, line))

    def _wait(self) -> None:
        """Wait for the process, end what it has left, and mark the end of its lines."""
        self._process.wait()
        strays = psutil.Process().children(recursive=True)
        for stray in strays:
            with suppress(psutil.NoSuchProcess):
                stray.kill()
        psutil.wait_procs(strays, timeout=TERM_SECONDS)
        for reader in self._readers:
            reader.join(TERM_SECONDS)
        self._lines.put(None)

    @ray.method(concurrency_group="output")  # type: ignore[untyped-decorator]
    def read(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """Wait for lines; return them with their descriptors, and the exit code where these were the last ones."""
        lines = [self._lines.get()]
        while not self._lines.empty():
            lines.append(self._lines.get())
        kept = [line for line in lines if line is not None]
        return kept, self._process.returncode if None in lines else None

    @ray.method(concurrency_group="input")  # type: ignore[untyped-decorator]
    def write(self, line: bytes) -> None:
        """Hand on a line of input; without one the input has ended."""
        with suppress(OSError, ValueError):
            if line:
                self._input.write(line)
                self._input.flush()
            else:
                self._input.close()

    @ray.method(concurrency_group="end")  # type: ignore[untyped-decorator]
    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(TERM_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


def connect_to_ray(address: str) -> None:
    """Connect to Ray. Raises StepProblem."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise StepProblem(
            "no Ray runs on this machine, and RAY_ADDRESS is not set. Start it: ray start --head on one node, and on each of "
            "the others what that prints"
            if address == "auto"
            else f"Ray at {address} cannot be reached: {error}"
        ) from error
    except (RuntimeError, ValueError) as error:  # another version, for example
        raise StepProblem(" ".join(str(error).split())) from error


def named(row: dict[str, Any]) -> tuple[str, str]:
    """Return the name of a node and its id, by which nodes are ordered."""
    return row["NodeName"], row["NodeID"]


def choose(rows: Sequence[dict[str, Any]], devices: int, most: int) -> list[dict[str, Any]]:
    """Return the nodes with so many GPUs, or processors where there are no GPUs; at most `most`. Raises StepProblem."""
    alive = sorted((row for row in rows if row["Alive"]), key=named)
    kind = "GPU" if any(row["Resources"].get("GPU") for row in alive) else "CPU"
    fitting = [row for row in alive if row["Resources"].get(kind, 0) >= devices]
    if not fitting:
        has = ", ".join(f"{row['Resources'].get(kind, 0):g} on {row['NodeName']}" for row in alive)
        raise StepProblem(f"no node has {devices} of what Ray calls {kind}: it has {has}; set cluster.devices_per_node")
    return fitting[: most or None]


def by_id(rows: Sequence[dict[str, Any]], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the nodes of these ids, in this order. Raises StepProblem where one is gone."""
    alive = {row["NodeID"]: row for row in rows if row["Alive"]}
    if gone := [row["NodeName"] for row in rows if row["NodeID"] in ids and not row["Alive"]] or set(ids) - set(alive):
        raise StepProblem(
            f"{', '.join(gone)} is no node of Ray any more: run the same command again to go on without it"
        )
    return [alive[each] for each in ids]


def start_carriers(rows: Sequence[dict[str, Any]], words: list[str], variables: dict[str, str]) -> list[Any]:
    """Start an actor on each node, as soon as all of it is free. Raises StepProblem."""
    bundles = [{name: row["Resources"][name] for name in ("CPU", "GPU") if row["Resources"].get(name)} for row in rows]
    here = [{"ray.io/node-id": row["NodeID"]} for row in rows]
    group = placement_group(bundles, strategy="STRICT_SPREAD", bundle_label_selector=here)
    if not group.wait(READY_SECONDS):
        raise StepProblem(
            f"the nodes are not free: other work holds some of them for {READY_SECONDS:g} s; see ray status"
        )
    names = [row["NodeName"] for row in rows]
    actors = []
    for number, (row, bundle) in enumerate(zip(rows, bundles, strict=True)):
        name = names[number] if names.count(names[number]) == 1 else f"{names[number]}-{row['NodeID'][:8]}"
        seat = {"number": number, "name": name, "job": row["NodeID"][:16], "processors": int(bundle.get("CPU", 0))}
        seat["step"] = ray.get_runtime_context().get_job_id()
        remote = ray.remote(concurrency_groups={"input": 1, "output": 1, "end": 1})(Carrier)
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        own = remote.options(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0), scheduling_strategy=place)
        actors.append(own.remote(words, seat, variables))
    return actors


class RayStep:
    """A step that runs: the actors of the nodes, and until when it may take to end."""

    def __init__(self, names: Sequence[str], actors: Sequence[Any]) -> None:
        self._names, self._actors = names, actors
        self._deadline, self._failed = inf, False

    def feed(self, *, bound: bool) -> None:
        """Hand on the input until it ends. Those who are `bound` to it have a short time to end after that."""
        for line in sys.stdin.buffer:
            for actor in self._actors:
                actor.write.remote(line)
        for actor in self._actors:
            actor.write.remote(b"")
        if bound:
            time.sleep(END_SECONDS)
            self._end()

    def _end(self) -> None:
        self._deadline = min(self._deadline, time.monotonic() + END_SECONDS)
        for actor in self._actors:
            actor.end.remote()

    def _fail(self, number: int, how: str) -> None:
        """Tell what has failed first, and end all."""
        if not self._failed:
            self._failed = True
            os.write(2, f"ray: error: {self._names[number]}: {how}\n".encode())
            self._end()

    def run(self) -> int:
        """Carry the lines of all nodes until they have ended. Return the exit code."""
        waiting = {actor.read.remote(): number for number, actor in enumerate(self._actors)}
        while waiting and time.monotonic() < self._deadline:
            ready, _ = ray.wait(list(waiting), timeout=1.0)
            for each in ready:
                number = waiting.pop(each)
                try:
                    lines, code = ray.get(each)
                except RayError as error:
                    self._fail(number, str(error).strip().splitlines()[-1])
                    continue
                for descriptor, line in lines:
                    with suppress(OSError):  # nobody reads it any more
                        os.write(descriptor, line)
                if code is None:
                    waiting[self._actors[number].read.remote()] = number
                elif code:
                    how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
                    self._fail(number, f"its process {how}")
        return 1 if self._failed or waiting else 0


def main() -> int:
    """Do a step. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m bench.run.ray_step", description=__doc__)
    parser.add_argument("--address", required=True, help="HOST:PORT of Ray, or auto")
    parser.add_argument("--on", default="", help="ids of the nodes in their order, separated by commas")
    parser.add_argument("--devices", type=int, default=1, help="fewest devices of a node that is chosen")
    parser.add_argument("--nodes", type=int, default=0, help="most nodes that are chosen; 0: all")
    parser.add_argument("--export", default="", help="names of variables for the nodes, separated by commas")
    parser.add_argument("words", nargs="+", help="module and its arguments")
    args = parser.parse_args()
    named_variables = (*split_names(args.export), *json.loads(os.environ.get(CHANGED, "{}")), CHANGED, STARTED_IN)
    variables = {name: os.environ[name] for name in named_variables if name in os.environ}
    try:
        connect_to_ray(args.address)
        ids = split_names(args.on)
        rows = by_id(ray.nodes(), ids) if ids else choose(ray.nodes(), args.devices, args.nodes)
        if not ids:
            told = [{"id": row["NodeID"], "address": row["NodeManagerAddress"]} for row in rows]
            document = {"address": ray.get_runtime_context().gcs_address, "nodes": told}
            os.write(1, json.dumps(document).encode() + b"\n")
        actors = start_carriers(rows, args.words, variables)
    except StepProblem as error:
        os.write(2, f"ray: error: {error}\n".encode())
        return 2
    step = RayStep([row["NodeName"] for row in rows], actors)
    threading.Thread(target=step.feed, kwargs={"bound": bool(ids)}, daemon=True).start()
    return step.run()


if __name__ == "__main__":
    sys.exit(main())
