"""The launcher of an allocation of Slurm: `srun` carries the lines of its step."""

from __future__ import annotations

from bench.run.step import AllocationEnded, StepLauncher

__all__ = ["AllocationEnded", "SrunLauncher"]


class SrunLauncher(StepLauncher):
    """Agents on all nodes of an allocation of Slurm."""

    _nowhere = "launcher slurm: not inside a Slurm allocation"
    _over = "Job {job} has ended. Run the same command in another allocation to resume."
    _errors = ("srun: error", "slurmstepd: error")
