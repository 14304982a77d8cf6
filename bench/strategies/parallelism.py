"""How ranks share the work: subclasses of Parallelism whose keyword arguments are the options of a suite."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bench.strategies.parts import Parallelism, Parts
from bench.strategies.precision import Unsupported


class Single(Parallelism):
    """One device; no wrapper, no collectives."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        if self.data_ranks > 1:
            raise Unsupported(f"parallelism single is for one device, not {self.data_ranks}: choose ddp")


class Ddp(Parallelism):
    """Data parallelism: a copy of the model on every rank, gradients averaged while the backward pass runs.

    `bucket_mb` is the size in MiB of the buckets in which gradients travel. One rank runs the same code, so that one device
    and several differ in the devices only.
    """

    def __init__(self, parts: Parts, bucket_mb: int = 25) -> None:
        import torch

        super().__init__(parts)
        ids = [parts.device.index] if parts.device.type == "cuda" else None
        self.module = self.replicated = torch.nn.parallel.DistributedDataParallel(
            self.module, device_ids=ids, bucket_cap_mb=bucket_mb
        )

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Hold gradients back until the last micro-batch."""
        return nullcontext() if now else self.replicated.no_sync()
