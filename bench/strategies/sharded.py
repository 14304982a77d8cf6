"""Fully sharded data parallelism: weights, gradients and the state of the optimizer are divided among the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from bench.strategies.parts import Parallelism, Parts, Unsupported, materialize


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the whole weights of a model of DTensors on the host of rank 0, None on other ranks."""
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return None if dist.get_rank() else state


class Fsdp2(Parallelism):
    """FSDP2 (ZeRO stage 3): each block's weights are gathered before it computes and freed after it.

    Without `reshard` they stay from the forward pass to the backward pass (as in ZeRO stage 2): less traffic, more memory.
    `offload` keeps weights, gradients and the optimizer in the memory of the host; on a CPU it changes nothing. `meta`
    builds the model without memory and fills it after sharding, so that no device ever holds all of it. Number formats are
    those of the other strategies (weights of 32 bits, autocast). `mixed` casts weights before they travel, which in 16 bits
    halves the traffic and also rounds what passes between blocks. Without it, autocast casts the gathered weights, and the
    backward pass keeps the casts of all blocks: a copy of the whole model. Gradients always travel and add up in 32 bits.
    """

    apart = False
    regional = True

    def __init__(self, parts: Parts, *, reshard: bool, offload: bool, meta: bool, mixed: bool) -> None:
        super().__init__(parts)
        mesh = self._mesh()
        self._shard(mesh, mesh.get_local_rank(mesh.ndim - 1), reshard=reshard, offload=offload, meta=meta, mixed=mixed)

    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.parts.device.type, (self.data_ranks,), mesh_dim_names=("shard",))

    def _shard(self, mesh: DeviceMesh, part: int, *, reshard: bool, offload: bool, meta: bool, mixed: bool) -> None:
        """Shard each block, then the rest. All of `mesh` shares the weights; of two dimensions, the last one does.

        `part` is the number of this rank's part of the weights.
        """
        parts, precision = self.parts, self.parts.precision
        blocks = list(dict.fromkeys(parts.blocks))  # a block that occurs several times is sharded once
        if not blocks:
            raise Unsupported("sharding works block by block, and the workload has no blocks")
        on_gpu = parts.device.type == "cuda"
        options: dict[str, Any] = {
            "mesh": mesh,
            "offload_policy": CPUOffloadPolicy(pin_memory=on_gpu) if offload else OffloadPolicy(),
            "mp_policy": MixedPrecisionPolicy(precision.compute_dtype if mixed else None, torch.float32),
        }
        for block in blocks:
            fully_shard(block, reshard_after_forward=reshard, **options)
        # The root's own weights, embedding and head, are the last in use and the first again: they stay.
        self.root = fully_shard(parts.model, reshard_after_forward=False, **options)
        if meta:
            materialize(parts, part, on_host=offload)

    @contextmanager
    def _synchronised(self, *, now: bool) -> Iterator[None]:
        self.root.set_requires_gradient_sync(now)
        self.root.set_is_last_backward(now)
        yield

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Keep gradients whole until the last micro-batch."""
        return self._synchronised(now=now)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return gathered(self.parts.model)


class Hsdp(Fsdp2):
    """Hybrid sharding: groups of `shard` devices shard the model, and the groups are copies of each other."""

    def __init__(self, parts: Parts, *, shard: int, reshard: bool, offload: bool, meta: bool, mixed: bool) -> None:
        self.shard = shard
        super().__init__(parts, reshard=reshard, offload=offload, meta=meta, mixed=mixed)

    def _mesh(self) -> DeviceMesh:
        shape = self.data_ranks // self.shard, self.shard
        return init_device_mesh(self.parts.device.type, shape, mesh_dim_names=("replicate", "shard"))
