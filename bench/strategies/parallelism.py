"""How ranks share the work: functions `(model, device, **options) -> wrapped model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ddp(model: torch.nn.Module, device: torch.device, bucket_mb: int = 25) -> torch.nn.Module:
    """Data parallelism: a copy of the model on every rank, gradients averaged while the backward pass runs.

    `bucket_mb` is the size in MiB of the buckets in which gradients travel. The model exposes `no_sync()` for
    accumulation. One rank runs the same code, so that one device and several differ in the devices only.
    """
    import torch

    ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, bucket_cap_mb=bucket_mb)
