"""The nodes of an allocation of Slurm that the user holds: who they are, how a step is started on them, and when it ends.

`bench.machine.ray` has the same of nodes of Ray.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.cluster_options import ClusterOptions
from bench.errors import FAULT, WRONG_USE, UserError
from bench.machine.environment import commit, describe, find_machine
from bench.machine.seat import find_seat
from bench.process import module_command
from bench.record import Environment
from bench.redact import redact_argv
from bench.schema import Machine

PART = 600
"""Characters of a line by which a node describes itself: `srun` may cut longer lines of several nodes into each other."""
FACTS_SECONDS = 240.0
COMMAND_SECONDS = 60.0
STEP_SECONDS = 30.0
"""The longest that the nodes, a command of Slurm, and the end of a step may take."""
_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


class ClusterProblem(UserError):
    """The nodes of an allocation cannot be used; the message says why and what to do."""

    code = FAULT


class Cluster(Machine):
    """Several machines of an allocation; as a machine it is what each of them has at least.

    `job` names it; `nodes` are in the order of a step, with their `names` in Slurm; `addresses` are those by which they reach
    each other.
    `ends_at` is when the allocation ends, by the monotonic clock of this process; None where it is not limited.
    """

    job: str
    names: list[str]
    nodes: list[Environment]
    addresses: list[str]
    ends_at: float | None = None
    asked: ClusterOptions = ClusterOptions()

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which a step is started."""
        return step_variables()

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command that starts a module of wattbench once on each node."""
        return step(len(self.names), module, *arguments, asked=self.asked)

    @property
    def num_nodes(self) -> int:
        """Number of nodes of the allocation."""
        return len(self.nodes)

    @property
    def launcher(self) -> str:
        """Launcher of runs in an allocation."""
        return "slurm"

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the allocation ends; None where it is not limited."""
        return None if self.ends_at is None else self.ends_at - time.monotonic()

    def running(self) -> bool:
        """Whether the allocation still runs, as far as Slurm answers."""
        return job_runs(self.job)

    def end_step(self, number: str) -> None:
        """Kill a step of the allocation and wait until it has ended, as far as Slurm answers."""
        with suppress(ClusterProblem):
            ask_slurm("scancel", "--signal=KILL", f"{self.job}.{number}")
        end = time.monotonic() + STEP_SECONDS
        with suppress(ClusterProblem):
            while time.monotonic() < end and f"{self.job}.{number}" in ask_slurm(
                "squeue", "-h", "-s", "-j", self.job, "-o", "%i"
            ):
                time.sleep(0.5)

    @cached_property
    def environment(self) -> Environment:
        """The environment of the runs: that of the first node, with the command typed here."""
        return self.nodes[0].changed(argv=redact_argv(sys.argv), folder_commit=commit(Path.cwd()))


def in_allocation(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is inside an allocation of Slurm."""
    return bool(variables.get("SLURM_JOB_ID"))


def several_nodes(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether runs belong on other machines than this one: on several nodes, or on one that this process is not on."""
    return in_allocation(variables) and not (
        variables.get("SLURM_JOB_NUM_NODES") == "1" and "SLURMD_NODENAME" in variables
    )


def job_runs(job: str) -> bool:
    """Whether a job still runs, as far as Slurm answers."""
    try:
        return _asked(job)[0] in ("RUNNING", "SUSPENDED")
    except ClusterProblem as error:
        return "Invalid job id" not in str(error)


def find_cluster(asked: ClusterOptions | None = None) -> Cluster:
    """Ask the nodes of the allocation who they are, by steps as they are `asked` for. Raises ClusterProblem."""
    asked = asked or ClusterOptions()
    job = os.environ["SLURM_JOB_ID"]
    copies = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if os.environ.get("SLURM_STEP_ID", "").isdigit() and copies != "1":
        raise ClusterProblem(
            f"bench was started {copies} times, by srun: start it once, in the batch script or the shell of salloc.\n"
            "It starts its own processes on all nodes of the allocation.",
            code=WRONG_USE,
        )
    for tool in ("srun", "scontrol", "squeue"):
        if shutil.which(tool) is None:
            raise ClusterProblem(
                f"job {job} of Slurm: there is no {tool} on PATH; --launcher local uses this machine alone"
            )
    names = ask_slurm("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")).split()
    try:
        _, remaining, others = _asked(job)
    except ClusterProblem as problem:
        if "Invalid job id" not in str(problem):
            raise
        raise ClusterProblem(
            f"SLURM_JOB_ID is {job}, which this Slurm does not know: the job has ended, or is of another cluster.\n"
            "Unset it, or give --launcher local to use this machine alone",
            code=WRONG_USE,
        ) from problem
    left = time_left(remaining)
    names, nodes = _environments(job, names, asked)
    nodes = [_alone(node) for node in nodes] if others == "NO" else nodes
    return Cluster(
        **least([node.machine for node in nodes]),
        job=job,
        names=names,
        nodes=nodes,
        addresses=[_address(name) for name in names],
        ends_at=None if left is None else time.monotonic() + left,
        asked=asked,
    )


def least(machines: list[Machine], most: int | None = None) -> dict[str, Any]:
    """Return the fields of a machine that has what each of these has, but no more devices than `most`."""
    first, fewest = machines[0], min(len(machine.free_gpus) for machine in machines)
    count, fewest = min(machine.cpu_count for machine in machines), min(fewest, most or fewest)
    return dict(first) | {
        "cpu_count": count if first.gpus else min(count, most or count),
        "gpus": first.gpus if fewest == len(first.free_gpus) else first.free_gpus[:fewest],
    }


def _alone(node: Environment) -> Environment:
    """Return a node of a job that others may not use, whatever part of it the job has."""
    return node.changed(cluster={name: value for name, value in node.cluster.items() if name != "shared"})


_LEFT_OUT = (
    *("SLURM_LABELIO", "SLURM_UNBUFFEREDIO", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_HINT"),
    *("SRUN_CPUS_PER_TASK", "SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS"),
)
"""Variables of the job from which `srun` would take how to divide a step, or how to write its lines."""


def step_variables() -> dict[str, str]:
    """Return the variables with which a step is started: one task a node that has all of its devices."""
    return {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}


def step(nodes: int, module: str, *arguments: str, asked: ClusterOptions) -> list[str]:
    """Return the command that starts a module once on each of the first nodes of the allocation, as a step of Slurm.

    Its input goes to all of them. Lines of their output stay whole if they are short. Whoever ends with an error ends all.
    In a container wattbench is that of the container.
    """
    how = ["--overlap", "--input=all", "--kill-on-bad-exit=1", "--export=ALL", "--cpu-bind=none", *asked.srun]
    how += [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    if asked.container is not None:
        how += [f"--container-image={asked.container}"]
        how += [f"--container-mounts={','.join(asked.container_mounts)}"] if asked.container_mounts else []
    started = module_command(module, *arguments)
    if asked.container is not None or asked.container_command:
        started = [*asked.container_command, asked.python or "python3", "-P", "-m", module, *arguments]
    return ["srun", *how, *started]


def _environments(job: str, names: list[str], asked: ClusterOptions) -> tuple[list[str], list[Environment]]:
    """Let each node describe itself; return names and environments in the order of a step. Raises ClusterProblem."""
    command = step(len(names), "bench.machine.cluster", asked=asked)
    try:
        done = subprocess.run(
            command, env=step_variables(), stdin=subprocess.DEVNULL, capture_output=True, timeout=FACTS_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterProblem(f"the nodes {', '.join(names)} did not answer within {FACTS_SECONDS:g} s") from error
    found = described(done.stdout)
    own = {number: name for number, (name, _) in found.items()}
    silent = sorted(set(names) - set(own.values()))
    if done.returncode or silent:
        if not job_runs(job):
            raise ClusterProblem(f"job {job} of Slurm has ended")
        why = done.stderr.decode(errors="replace").strip().splitlines()[-8:]
        raise ClusterProblem(
            f"{sys.executable} cannot be started on {', '.join(silent or names)}:\n"
            + ("\n".join(why) or "(no message)")
            + "\n--launcher local uses this machine alone"
        )
    return [own[number] for number in range(len(names))], [found[number][1] for number in range(len(names))]


def described(output: bytes) -> dict[int, tuple[str, Environment]]:
    """Return the names and environments of nodes by their numbers, from the lines by which they describe themselves."""
    parts, names = dict[int, dict[int, str]](), dict[int, str]()
    for line in output.decode(errors="replace").splitlines():
        if line.startswith('{"node"'):
            part = json.loads(line)
            parts.setdefault(part["node"], {})[part["part"]] = part["text"]
            names[part["node"]] = part["name"]
    texts = {number: "".join(text for _, text in sorted(own.items())) for number, own in parts.items()}
    return {number: (names[number], Environment.model_validate_json(text)) for number, text in texts.items()}


def ask_slurm(*command: str, errors_too: bool = False) -> str:
    """Return what a command of Slurm prints, on its standard error too if wanted. Raises ClusterProblem where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterProblem(f"{command[0]} did not answer within {COMMAND_SECONDS:g} s") from error
    except OSError as error:
        raise ClusterProblem(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()  # the arguments stay out of it: a path is any text
        raise ClusterProblem(f"{command[0]}: {said.removeprefix(f'{command[0]}: ')}")
    return (done.stdout + (done.stderr if errors_too else b"")).decode(errors="replace")


def _asked(job: str) -> tuple[str, str, str]:
    """Return the state of a job, the time left, and whether others may use its nodes (NO: it has them alone).

    They are as `squeue` writes them; empty where it lists no job of this id.

    A job of an array may have the id of the whole array, of which all jobs are listed.
    """
    lines = ask_slurm("squeue", "-h", "-t", "all", "-j", job, "-o", "%A|%T|%L|%h").splitlines()
    rows = [line.split("|") for line in lines]
    return next(((row[1], row[2], row[3]) for row in rows if row[0] == job), ("", "", ""))


def _address(name: str) -> str:
    """Return the address of a node for other nodes; its name where Slurm states none."""
    match = re.search(r"\bNodeAddr=(\S+)", ask_slurm("scontrol", "show", "node", name, "--oneliner"))
    return match[1] if match is not None else name


def time_left(text: str) -> float | None:
    """Return the seconds of a time as Slurm writes it: 1-02:03:04, 03:04; None for UNLIMITED, or what is no time."""
    match = _LEFT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def main() -> int:
    """Describe this node on the standard output, in lines that stay whole. Return the exit code."""
    machine, seat = find_machine()[0], find_seat()
    if seat.engine == "ray":  # which hands out a part of the processors without binding anybody to it
        machine = machine.changed(cpu_count=min(machine.cpu_count, seat.processors))
    text = describe(machine).changed(cluster=seat.facts).model_dump_json()
    for part, start in enumerate(range(0, len(text), PART)):
        line = {"node": seat.number, "name": seat.name, "part": part, "text": text[start : start + PART]}
        os.write(1, (json.dumps(line) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
