"""The jobs of a cluster that a suite would need, and the nodes that were held for it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analytics.say.blocks import Block, Lines, Note, Sentence
from analytics.text import counted, duration, interval, two_digits
from bench.folder import HeldNodes
from bench.jobs.session import PlannedBlock
from bench.record import LostAttempt
from bench.schema import RunSpec


def job_blocks(jobs: Sequence[PlannedBlock]) -> Iterator[Block]:
    """Yield what each job asks for, and the batch script of the first of each size."""
    if not jobs:
        return
    hours, cost = sum(job.node_hours for job in jobs), [job.usd for job in jobs if job.usd is not None]
    money = f" and {interval(sum(cost))} USD" if cost else ""
    yield Sentence(f"{counted(len(jobs), 'job')} asking for {interval(hours)} node-hours{money} at most.", "answer")
    sizes = set[int]()
    for place, job in enumerate(jobs, 1):
        where = f"{counted(job.nodes, 'node')} x {job.devices_per_node}"
        said = {None: "", True: f"; Slurm would take it {job.said}", False: f"; Slurm would refuse it: {job.said}"}
        asked = f"{duration(job.minutes * 60.0)} asked, {interval(job.node_hours)} node-hours"
        yield Sentence(f"Job {place}: {counted(job.runs, 'run')} on {where}, {asked}{said[job.accepted]}")
        if job.nodes not in sizes:
            sizes.add(job.nodes)
            yield Lines(tuple(job.script.rstrip().splitlines()), "command")
    if any(job.accepted is False for job in jobs):
        yield Note("jobs that Slurm refuses are not submitted: change cluster in the suite.", "Careful")


def held_text(held: HeldNodes, silent: int, usd_per_device_hour: float | None) -> str:
    """Say how long nodes were held, how long runs used them, and what that costs; `silent` jobs are not in it."""
    hours, share = held.held_seconds / 3600, held.used_seconds / held.held_seconds
    text = f"Nodes were held for {interval(hours)} node-hours since the agents started; runs used {share:.0%} of that"
    if usd_per_device_hour is not None and held.devices is not None:
        text += f". Holding them cost {interval(hours * held.devices * usd_per_device_hour)} USD"
    return f"{text}." + (f" Without {counted(silent, 'job')} that did not say how long." if silent else "")


def lost_words(lost: Sequence[tuple[RunSpec, LostAttempt]], usd_per_device_hour: float | None = None) -> str:
    """Say what attempts at runs that were lost with their jobs have cost, as far as it is known; nothing without such."""
    attempts = [attempt for _, attempt in lost]
    if not attempts:
        return ""
    hours = [each.seconds * each.nodes / 3600 for each in attempts if each.seconds is not None]
    least = "at least " * (any(each.at_least for each in attempts) or len(hours) < len(attempts))
    costs = [f"{least}{two_digits(sum(hours))} node-hours" if hours else "time not known"]
    if hours and usd_per_device_hour is not None:
        device_hours = sum(spec.world_size * (each.seconds or 0.0) / 3600 for spec, each in lost)
        costs.append(f"{least}{two_digits(device_hours * usd_per_device_hour)} USD")
    measured = [each.energy_joules for each in attempts if each.energy_joules is not None]
    estimated = [
        each.energy_joules_estimated or 0.0
        for each in attempts
        if each.energy_joules is None and each.energy_joules_estimated is not None
    ]
    more = "at least " * any(each.energy_at_least for each in attempts)
    costs += [f"{more}{two_digits(sum(measured) / 1000)} kJ"] if measured else []
    costs += [f"{more}about {two_digits(sum(estimated) / 1000)} kJ by a model"] if estimated else []
    unknown = len(attempts) - len(measured) - len(estimated)
    of_some = f" of {unknown} of them" * (unknown < len(attempts))
    costs += [f"energy{of_some} not known"] if unknown else []
    were, their = ("was", "its job") if len(attempts) == 1 else ("were", "their jobs")
    text = f"{counted(len(attempts), 'attempt')} {were} lost with {their}"
    return f"{text}: {', '.join(costs)}. No figure of a run includes that."
