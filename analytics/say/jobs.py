"""The jobs of a cluster that a suite would need, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analytics.say.blocks import Block, Lines, Note, Sentence
from analytics.text import counted, duration, interval
from bench.jobs.session import PlannedBlock


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
