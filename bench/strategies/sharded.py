"""Fully sharded data parallelism: weights, gradients and the state of the optimizer are cut up over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from bench.strategies.parallelism import WEIGHTS, gathered, refuse
from bench.strategies.parts import Parallelism, Parts
from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


class Fsdp2(Parallelism):
    """FSDP2 (ZeRO stage 3): each block's weights are gathered before it computes and let go of after it.

    `reshard` False keeps them from the forward pass to the backward pass (as ZeRO stage 2): less traffic, more memory.
    `offload` keeps weights, gradients and the optimizer in the host's memory; on a CPU that changes nothing. `meta` builds
    the model without memory and fills it when it is cut up, so that no device ever holds it whole. Number formats are those
    of the other strategies (weights of 32 bits, autocast); with `mixed` weights are cast to 16 bits before they travel, half
    the traffic, and what goes from block to block is rounded so too. Gradients always travel and add up in 32 bits.
    """

    apart = False
    regional = True

    def __init__(
        self, parts: Parts, reshard: bool = True, offload: bool = False, meta: bool = False, mixed: bool = False
    ) -> None:
        super().__init__(parts)
        self._shard(self._mesh(), reshard=reshard, offload=offload, meta=meta, mixed=mixed)

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.parts.device.type, (self.data_ranks,), mesh_dim_names=("shard",))

    def _shard(self, mesh: DeviceMesh, *, reshard: bool, offload: bool, meta: bool, mixed: bool) -> None:
        """Cut up each block, then what is left. All of `mesh` shares the weights; of two dimensions the last one does."""
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        parts, precision = self.parts, self.parts.precision
        blocks = list(dict.fromkeys(parts.blocks))  # a block that is there several times is cut up once
        if not blocks:
            raise Unsupported("sharding goes block by block, and the workload names no blocks")
        if offload and precision.scaler is not None:
            raise Unsupported("offload with fp16: the scaler of gradients is on the GPU, the gradients are not")
        if mixed and precision.compute_dtype == torch.float32:
            raise Unsupported("mixed sends weights in 16 bits: choose precision bf16 or fp16")
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
            refuse(parts.spec, WEIGHTS, "weights that do not exist yet cannot be changed: leave meta out")
            parts.model.to_empty(device="cpu" if offload else parts.device)
            with self._own_random_numbers(mesh):
                parts.workload.initialize(parts.model)

    @contextmanager
    def _own_random_numbers(self, mesh: DeviceMesh) -> Iterator[None]:
        """Let each shard be initialised by numbers of its own; on GPUs torch sees to that itself."""
        import torch

        if self.parts.device.type == "cuda" and not self.parts.spec.parallelism.options.get("offload"):
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.parts.spec.seed * 65_537 + mesh.get_local_rank(mesh.ndim - 1))
            yield

    @contextmanager
    def _synchronised(self, *, now: bool) -> Iterator[None]:
        self.root.set_requires_gradient_sync(now)
        self.root.set_is_last_backward(now)
        yield

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Hold gradients back, whole, until the last micro-batch."""
        return self._synchronised(now=now)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights on the host of rank 0."""
        return gathered(self.parts.model)


class Hsdp(Fsdp2):
    """Hybrid sharding: groups of `shard` devices cut the model up among themselves and are copies of each other."""

    def __init__(
        self,
        parts: Parts,
        shard: int = 2,
        reshard: bool = True,
        offload: bool = False,
        meta: bool = False,
        mixed: bool = False,
    ) -> None:
        self.shard = shard
        super().__init__(parts, reshard, offload, meta, mixed)

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        shape = self.data_ranks // self.shard, self.shard
        return init_device_mesh(self.parts.device.type, shape, mesh_dim_names=("replicate", "shard"))
