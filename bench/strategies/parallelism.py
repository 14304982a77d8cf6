"""Parallelism in which every rank holds the whole model; the options are keyword arguments.

`zero` divides the state of the optimizer, `sharded` the weights, `tensor` the layers, `pipeline` the depth, and `context`
the sequences.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bench.strategies.parts import Parallelism, Parts


class Single(Parallelism):
    """One device; no wrapper, no collectives."""


class Ddp(Parallelism):
    """Data parallelism: a copy of the model on every rank, gradients averaged during the backward pass.

    Gradients travel in buckets of `bucket_mb` MiB. One rank runs the same code, so that one device and several differ in
    the devices only.
    """

    def __init__(self, parts: Parts, *, bucket_mb: int) -> None:
        super().__init__(parts)
        self.bucket_mb = bucket_mb

    def wrap(self) -> None:
        """Let the backward pass average the gradients. Its hooks could not be captured in a graph."""
        ids = [self.parts.device.index] if self.parts.device.type == "cuda" else None
        self.module = self.replicated = torch.nn.parallel.DistributedDataParallel(
            self.module, device_ids=ids, bucket_cap_mb=self.bucket_mb
        )

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Exchange gradients with the last micro-batch only."""
        return nullcontext() if now else self.replicated.no_sync()
