"""The launcher of nodes of Ray: `bench.run.ray_step` carries the lines of its step."""

from __future__ import annotations

from bench.run.step import StepLauncher


class RayLauncher(StepLauncher):
    """Agents on nodes of Ray, whose processors and GPUs they hold."""

    _nowhere = "launcher ray: write it at the top of the suite, or give --launcher ray"
    _over = "Ray at {job} has ended. Start it again and run the same command to resume."
    _errors = ("ray: error",)
