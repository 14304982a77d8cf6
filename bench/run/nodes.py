"""Runs on several nodes: how they ended, put together from what each node left, and what its meters read by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from bench import folder as files
from bench.meters import windows as accounting
from bench.meters.trace import Trace
from bench.record import RESTART, EnergyReading, IdlePower, Measurement, NodeFacts, Phase
from bench.run.joined import join_command
from bench.schema import COMMAND, RunSpec


def put_together(
    folder: Path, names: Sequence[str], seconds: float, silent: str, started_at: datetime | None = None
) -> files.Exit:
    """Write how a run on nodes of these names ended from what each has left; return it.

    `seconds` is how long it took by the clock of the launcher since `started_at`; `silent` is what is known where a node has
    left nothing.
    """
    lost = files.Exit(how="node_died", message=silent)
    ends = [
        files.find_node_end(folder, number) or files.NodeEnd(node=number, name=name, exit=lost)
        for number, name in enumerate(names)
    ]
    first, deciding = ends[0].exit, min((end.exit for end in ends), key=lambda end: (_order(end), end != lost))
    if first.end_ns == 0:
        first = first.changed(end_ns=round(seconds * 1e9), started_at=started_at)
    exit_ = first.changed(
        how=deciding.how,
        exitcode=deciding.exitcode,
        message=deciding.message,
        sidecar_error=next((end.exit.sidecar_error for end in ends if end.exit.sidecar_error), None),
        killed_for_memory=any(end.exit.killed_for_memory for end in ends),
        suspended=any(end.exit.suspended for end in ends),
    )
    spec = files.SPEC.find(folder)
    if len(ends) > 1 and spec is not None and spec.workload == COMMAND and (joined := join_command(folder, spec, ends)):
        ends = joined
        if exit_.how == "ended":
            exit_ = exit_.changed(exitcode=0)
    if len(ends) > 1:
        files.NODES.write(folder, ends)
    if ranks := [rank for end in ends for rank in end.ranks]:
        files.RANK_EXITS.write(folder, ranks)
    files.EXIT.write(folder, exit_)
    for path in files.NODE_ENDS.paths(folder):
        path.unlink()
    return exit_


def well(ended: files.Exit) -> bool:
    """Whether a run has ended by itself and without a failure."""
    return ended.how == "stopped" or (ended.how, ended.exitcode) == ("ended", 0)


def _order(end: files.Exit) -> int:
    """Order how nodes ended: what decides about the whole run first. A failed node makes the others be cancelled."""
    if end.how == "ended":
        return 1 if end.exitcode else 5
    return {"timeout": 0, "node_died": 2, "gone": 3, "cancelled": 4, "stopped": 5}[end.how]


class TimeSpan(NamedTuple):
    """A time of a node from `start_ns` to `end_ns` by its clock, without pauses, each as (start, end)."""

    start_ns: int
    end_ns: int
    without: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class NodeTrace:
    """What the meters of a node read during a run, how long that took, and the times of its first rank.

    `cpu_seconds` are those of a command on several nodes.
    """

    boot_id: str
    trace: Trace | None
    start_ns: int
    end_ns: int
    timeline: files.Timeline | None = None
    cpu_seconds: float | None = None

    @property
    def phases(self) -> list[Phase]:
        """The phases of the node, which fill its run without gaps."""
        phases = self.timeline.phases if self.timeline is not None else []
        return accounting.contiguous(phases, self.start_ns, self.end_ns)

    @property
    def whole(self) -> TimeSpan:
        """The whole run."""
        return TimeSpan(self.start_ns, self.end_ns)

    @property
    def window(self) -> TimeSpan | None:
        """The measured window, by the steps of the first rank of the node: between its pauses. None without one."""
        steady = [phase for phase in self.phases if phase.name == "steady"]
        if not steady:
            return None
        start, end = steady[0].start_ns, steady[-1].end_ns
        pauses = [phase for phase in self.phases if phase.name != "steady" and start <= phase.start_ns < end]
        return TimeSpan(start, end, [(phase.start_ns, phase.end_ns) for phase in pauses])

    def _before(self, *names: str) -> list[tuple[int, int]]:
        """Return the times of phases of these names before the window."""
        window = self.window
        ended = [phase for phase in self.phases if phase.name in names]
        return [(p.start_ns, p.end_ns) for p in ended if window is not None and p.end_ns <= window.start_ns]

    @property
    def startup(self) -> TimeSpan | None:
        """The run until the window begins, without probes of the machine, and without ranks that were lost."""
        return (
            None
            if self.window is None
            else TimeSpan(self.start_ns, self.window.start_ns, self._before("probe", RESTART))
        )

    def phase(self, name: str, number: int) -> TimeSpan | None:
        """Return the phase of this name that comes so many phases of it later; None where the node has none."""
        same = [phase for phase in self.phases if phase.name == name][number:]
        return TimeSpan(same[0].start_ns, same[0].end_ns) if same else None

    def until(self, validation: int) -> TimeSpan | None:
        """Return the training until a validation has ended, without probes."""
        training = [phase.start_ns for phase in self.phases if phase.name == "warmup"]
        ends = self.timeline.read_ns[validation:] if self.timeline is not None else []
        return TimeSpan(training[0], ends[0], self._before("probe")) if training and ends else None

    @property
    def inference(self) -> TimeSpan | None:
        """The time of inference; None where the node did none."""
        times = self.timeline.inference if self.timeline is not None else None
        return None if times is None else TimeSpan(*times)


def traces(folder: Path, spec: RunSpec, end: files.Exit, boot_id: str, measured: Measurement | None) -> list[NodeTrace]:
    """Return what the meters of each node of a run read."""
    own = None
    if measured is not None:
        inference = measured.inference
        times = (inference.start_ns, inference.end_ns) if inference is not None else (None, None)
        read_ns = [point.read_ns for point in measured.quality]
        own = files.Timeline(phases=measured.phases, read_ns=read_ns)
        own = own.changed(inference=times) if None not in times else own
    if spec.num_nodes == 1:
        return [NodeTrace(boot_id, accounting.read_trace(folder), end.start_ns, end.end_ns, own)]
    out = []
    for node in files.NODES.find(folder) or []:
        raw, exit_ = files.RAW_METERS.path(folder, node.node), node.exit
        timeline = own if node.node == 0 and own is not None else node.timeline
        trace = Trace.read(raw) if raw.exists() else None
        out.append(
            NodeTrace(node.boot_id or node.name, trace, exit_.start_ns, exit_.end_ns, timeline, node.cpu_seconds)
        )
    return out or [NodeTrace(boot_id, None, end.start_ns, end.end_ns)]


def keep(folder: Path, nodes: Sequence[NodeTrace]) -> None:
    """Store what the meters of several nodes read as one trace, for plots: by the clock of the first node.

    Times are shifted so that the windows of the nodes begin together, or else their runs. Processors are named by node.
    """
    rows = []
    first = (nodes[0].window or nodes[0].whole).start_ns if nodes else 0
    for number, node in enumerate(nodes):
        shift = first - (node.window or node.whole).start_ns
        for row in node.trace.rows if node.trace is not None else []:
            own = row.device if row.device is None or row.component == "gpu" else f"node-{number}:{row.device}"
            if row.t_ns + shift >= 0:
                rows.append(replace(row, t_ns=row.t_ns + shift, device=own))
    if rows:
        Trace(rows).write_parquet(files.METERS.path(folder, 0))
    for path in files.RAW_METERS.paths(folder):
        path.unlink()


def energy_of_nodes(
    nodes: Sequence[NodeTrace], span: Callable[[NodeTrace], TimeSpan | None], meters: Iterable[str]
) -> list[EnergyReading]:
    """Return the energy of all nodes of a run over a span of each, which may differ by their clocks.

    What one node lacks is left out, as its sum would be too small: a component that it has not measured, or not estimated.
    All is left out where a node has no such span. What several nodes of one boot share counts once.
    """

    def kind(reading: EnergyReading) -> tuple[str, bool]:
        return reading.component, reading.provenance.measured

    parts, seen, meters = [], set[str](), list(meters)
    for node in nodes:
        times = span(node)
        if times is None:
            return []
        parts.append((node.boot_id, accounting.energy(node.trace, *times[:2], meters, times.without)))
    common = set.intersection(*({*map(kind, readings)} for _, readings in parts)) if parts else set()
    out = []
    for boot_id, readings in parts:
        shared = boot_id in seen
        seen.add(boot_id)
        kept = [r for r in readings if kind(r) in common and not (shared and r.component != "gpu")]
        out.append((boot_id, kept))
    return accounting.over_nodes(out)


def idle_power_of_nodes(execution: Path, spec: RunSpec, nodes: Sequence[NodeTrace]) -> list[IdlePower]:
    """Return the idle power of the components of all nodes of a run, named as those of `energy_of_nodes`."""
    out = accounting.idle_power(execution, spec.meters)
    if len(nodes) == 1:
        return out
    parts = [out]
    parts += [accounting.idle_power(files.NODE_FOLDERS.path(execution, k), spec.meters) for k in range(1, len(nodes))]
    return [
        part if part.component == "gpu" else part.changed(device=f"{node.boot_id[:8]}:{part.device}")
        for node, some in zip(nodes, parts, strict=True)
        for part in some
    ]


def node_facts(folder: Path, spec: RunSpec, nodes: Sequence[NodeTrace], kinds: Sequence[str]) -> list[NodeFacts]:
    """Return what the record of a run says of its nodes; nothing of a run on one node. `kinds` are those of the nodes."""
    out, ends = [], files.NODES.find(folder) or []
    for end, node in zip(ends, nodes, strict=False):
        window = node.window
        pauses = sum(stop - start for start, stop in window.without) if window is not None else 0
        out.append(
            NodeFacts(
                name=end.name,
                boot_id=end.boot_id,
                kind=kinds[end.node] if end.node < len(kinds) else None,
                first_rank=end.first_rank if spec.open_devices else end.node * spec.devices_per_node,
                ended=end.exit.how,
                exitcode=end.exit.exitcode,
                window_seconds=(window.end_ns - window.start_ns - pauses) / 1e9 if window is not None else None,
                clock_skew_seconds=_skew(ends[0].exit, end.exit),
                network=end.network,
            )
        )
    return out


def _skew(first: files.Exit, other: files.Exit) -> float | None:
    """Return by how much the wall clock of a node is ahead of that of the first one [s]; None where either is unknown.

    Nodes begin and end a run together, but for what one of them waits for: the smaller of both differences counts.
    """
    if first.started_at is None or other.started_at is None:
        return None
    begin = (other.started_at - first.started_at).total_seconds()
    end = begin + ((other.end_ns - other.start_ns) - (first.end_ns - first.start_ns)) / 1e9
    return min(begin, end, key=abs) if begin * end > 0 else 0.0
