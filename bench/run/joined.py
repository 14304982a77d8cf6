"""The measurement of a command on several nodes: of the whole world once, from what each node saw by its own clock.

All nodes are measured between the same two steps. Samples and tokens add up where torch's processes on all nodes are seen to
be of one world, and all of them are seen. Else they are left out, or those that the user states. Nodes that train each by
themselves are a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import folder as files
from bench.record import Measurement
from bench.run.own_steps import DIFFERENCE, LEAST_STEPS, Ended, measurement, stalled
from bench.schema import RunSpec
from bench.workloads.command import CommandArgs
from bench.workloads.printed import Printed

OF_ONE_NODE = ("this_node_only", "partial_world")
REPORTED = {"hooks", "script"}
"""Sources of steps of which each process tells its own, and its rank."""
LATE_STEPS = 2
"""By so many steps nodes that are ended at a limit may be apart; of others none may be."""
REMEDY = (
    "start it by torchrun, which takes from PET_* variables where the nodes meet, or give your launcher {num_nodes}, "
    "{node_rank}, {master_addr} and {master_port}"
)


@dataclass(frozen=True)
class _Part:
    """What a node has left: its files, how the command ended there, and its measurement."""

    end: files.NodeEnd
    folder: Path
    told: files.CommandEnd
    measured: Measurement

    @property
    def last(self) -> int:
        """The number of the last step of the window."""
        return (self.measured.steps_before or 0) + self.measured.steps


def join_command(folder: Path, spec: RunSpec, ends: Sequence[files.NodeEnd]) -> list[files.NodeEnd] | None:
    """Write the measurement of a command, or what is wrong with it; return the ends with the times of each node.

    Return None where the command has failed. The nodes that lost their peer as the first one reached a limit have not.
    """
    parts = []
    for end in ends:
        place = _place(folder, end.node)
        told = files.COMMAND_END.find(place) or _cut(end)
        if told is None:
            return None
        parts.append(_Part(end, place, told, _measured(place, spec, told, first=end.node == 0)))
    by = next((part.told.by for part in parts if part.told.by is not None), None)
    cut = all(end.exit.how == "timeout" for end in ends)
    errors = {error.rank // spec.devices_per_node: error.kind for error in files.read_errors(folder)}
    for part in parts:
        well = (part.end.exit.how, part.end.exit.exitcode) == ("ended", 0)
        lost = by is not None and part.end.exit.how == "ended" and errors.get(part.end.node) in ("failed", "peer")
        alive = cut and part.measured.steps >= LEAST_STEPS and not stalled(part.measured, part.told.end_ns)
        if not (well or lost or alive):
            return None
    if wrong := _apart(parts, spec):
        files.write_error(folder, files.RankError(kind="invalid", type="SeparateTrainings", message=wrong))
        return None
    same = _same_window(parts, spec, by is not None or cut)
    out = _whole_world(same or parts, spec, agree=same is not None)
    if by == "signal" and out.steps < LEAST_STEPS:
        return None
    if cut or by == "signal":
        out = out.changed(step_flags=[*out.step_flags, "ended_early"])
    files.RESULT.write(folder, out)
    for path in files.ERRORS.paths(folder):
        path.unlink()
    timed = {part.end.node: files.Timeline(phases=part.measured.phases) for part in same or parts[:1]}
    return [
        part.end.changed(
            timeline=timed.get(part.end.node),
            cpu_seconds=part.told.cpu_seconds,
            first_rank=min((rank.rank for rank in part.measured.ranks), default=None)
            if part.measured.step_source in REPORTED
            else None,
        )
        for part in parts
    ]


def _place(folder: Path, node: int) -> Path:
    """Return the folder with the files of a node."""
    return folder if node == 0 else files.NODE_FOLDERS.path(folder, node)


def _cut(end: files.NodeEnd) -> files.CommandEnd | None:
    """Return the end of a command at its time limit, at which its runner left none."""
    if end.exit.how != "timeout":
        return None
    return files.CommandEnd(exitcode=-9, start_ns=end.exit.start_ns, end_ns=end.exit.end_ns, cpu_seconds=0)


def _measured(
    place: Path,
    spec: RunSpec,
    told: files.CommandEnd,
    *,
    first: bool,
    between: tuple[int, int] | None = None,
) -> Measurement:
    """Return the measurement of one node, without what the user states of the whole; patterns are those of the first."""
    steps, how = files.STEPS.path(place, files.COMMAND_STEPS), CommandArgs.of(spec).printed
    how = replace(how, samples_per_step=None, tokens_per_step=None) if first else Printed()
    times = {name: getattr(told, name) for name in ("exitcode", "start_ns", "end_ns", "cpu_seconds")}
    ended = Ended(**times, peak_memory_bytes=told.peak_memory_bytes)
    return measurement(steps, ended, spec.warmup_steps, spec.device_type, how, nodes=spec.num_nodes, between=between)


def _apart(parts: Sequence[_Part], spec: RunSpec) -> str:
    """Return what is wrong where nodes train by themselves, as far as hooks see it; else nothing."""
    for part in parts:
        seen = part.measured.seen
        if seen is not None and (seen.world_size or 1) <= seen.processes:
            ranks = "1 process" if (seen.world_size or 1) == 1 else f"{seen.world_size} processes"
            found = f"the nodes do not train together: torch.distributed has {ranks} on {part.end.name}"
            return f"{found}, not those of all {spec.num_nodes} nodes; {REMEDY}"
    return ""


def _same_window(parts: Sequence[_Part], spec: RunSpec, ended: bool) -> list[_Part] | None:
    """Return the nodes measured between the same steps; None where they do not count the same ones."""
    sources = {part.measured.step_source for part in parts}
    if any(part.measured.restarts for part in parts):  # each node may have lost other steps
        return None
    if not sources <= REPORTED:
        return list(parts) if not any(part.measured.steps for part in parts) else None
    begin, last = max(part.measured.steps_before or 0 for part in parts), [part.last for part in parts]
    if not all(part.measured.steps for part in parts) or max(last) - min(last) > LATE_STEPS * ended:
        return None
    if begin == min(part.measured.steps_before or 0 for part in parts) and max(last) == min(last):
        return list(parts)
    between = (begin, min(last))
    out = [
        replace(part, measured=_measured(part.folder, spec, part.told, first=part.end.node == 0, between=between))
        for part in parts
    ]
    counts = {(part.measured.steps_before, part.measured.steps) for part in out}
    return out if len(counts) == 1 and out[0].measured.steps else None


def _whole_world(parts: Sequence[_Part], spec: RunSpec, *, agree: bool) -> Measurement:
    """Return the measurement of all nodes from those of each."""
    first, every = parts[0].measured, [part.measured for part in parts]
    seen = [measured.seen for measured in every if measured.seen is not None]
    processes, worlds = sum(facts.processes for facts in seen), {facts.world_size for facts in seen}
    whole = len(seen) == len(parts) and worlds == {processes}
    flags = [flag for measured in every for flag in measured.step_flags if not (whole and flag in OF_ONE_NODE)]
    flags += ["disk_full"] * any(part.told.disk_full for part in parts)
    flags += ["nodes_disagree"] * (not agree) + ["world_unknown"] * (not seen and first.steps > 0)
    flags += ["partial_world"] * (bool(seen) and not whole)
    ranks = [
        rank.changed(rank=rank.rank if measured.step_source in REPORTED else number * spec.devices_per_node)
        for number, measured in enumerate(every)
        for rank in measured.ranks
    ]
    reported = {rank.rank for rank in ranks}
    told = whole and (first.step_source == "output" or (agree and len(reported) == len(ranks) == processes))
    flags += ["partial_world"] * (whole and agree and first.step_source == "script" and not told)
    amounts: dict[str, int | None] = {}
    how = CommandArgs.of(spec).printed
    for name, stated in (("samples", how.samples_per_step), ("tokens", how.tokens_per_step)):
        amount = _sum([getattr(measured, name) for measured in every]) if told else None
        amount = getattr(first, name) if told and first.step_source == "output" else amount
        amounts[name], more = _beside_stated(amount, stated, first, known=whole or not seen)
        flags += more
    if how.samples_per_step and whole:
        flags = [flag for flag in flags if flag not in ("samples_unclear", "samples_from_input")]
    devices = [facts.devices for facts in seen]
    return first.changed(
        **amounts,
        step_flags=list(dict.fromkeys(flags)),
        window_seconds=max(measured.window_seconds for measured in every) if agree else first.window_seconds,
        ranks=ranks if len(reported) == len(ranks) else first.ranks,
        cpu_seconds=sum(part.told.cpu_seconds for part in parts),
        peak_memory_bytes=[peak for measured in every for peak in measured.peak_memory_bytes],
        flops_per_sample=first.flops_per_sample if amounts["samples"] else None,
        notes=first.notes | parts[0].told.notes,
        seen=seen[0].changed(
            processes=processes, devices=[one for some in devices for one in some] if whole and all(devices) else []
        )
        if seen
        else None,
    )


def _sum(amounts: Sequence[int | None]) -> int | None:
    """Return the sum; None where one is not known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _beside_stated(
    amount: int | None, stated: int | None, first: Measurement, *, known: bool
) -> tuple[int | None, list[str]]:
    """Return the samples or tokens of all nodes beside those of a step that the user states; a flag where they differ.

    What was seen of hooks gives way to what is stated. Nothing is stated of a world of which a part is seen.
    """
    if not stated or not first.steps or not known:
        return amount, []
    whole = stated * first.steps
    differ = amount is not None and abs(amount - whole) > DIFFERENCE * whole
    return (whole if amount is None or first.step_source == "hooks" else amount), ["sources_differ"] * differ
