"""How ranks share the work: subclasses of Parallelism whose keyword arguments are the options of a suite.

Here are those that keep the whole model on every rank. `sharded` cuts its weights up, `tensor` its layers, `pipeline` its
depth, `context` the sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from bench.schema import RunSpec
from bench.strategies.parts import Parallelism, Parts
from bench.strategies.precision import Unsupported

if TYPE_CHECKING:
    import torch

WEIGHTS = ("finetune", "pruning", "quantization", "distillation")
"""Axes that put something else in place of layers or weights, or run a second model beside the first."""


def refuse(spec: RunSpec, axes: Iterable[str], reason: str) -> None:
    """Raise Unsupported if one of the axes is not at its default."""
    for axis in axes:
        if getattr(spec, axis) != RunSpec.model_fields[axis].default:
            raise Unsupported(f"parallelism {spec.parallelism.name} with {axis} {getattr(spec, axis)}: {reason}")


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the whole weights of a model of DTensors on the host, on rank 0."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return None if dist.get_rank() else found


class Single(Parallelism):
    """One device; no wrapper, no collectives."""


class Ddp(Parallelism):
    """Data parallelism: a copy of the model on every rank, gradients averaged while the backward pass runs.

    `bucket_mb` is the size in MiB of the buckets in which gradients travel. One rank runs the same code, so that one device
    and several differ in the devices only.
    """

    def __init__(self, parts: Parts, bucket_mb: int = 25) -> None:
        super().__init__(parts)
        self._replicate(self.module, bucket_mb)

    def _replicate(self, module: torch.nn.Module, bucket_mb: int) -> None:
        import torch

        ids = [self.parts.device.index] if self.parts.device.type == "cuda" else None
        self.module = self.replicated = torch.nn.parallel.DistributedDataParallel(
            module, device_ids=ids, bucket_cap_mb=bucket_mb
        )

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Hold gradients back until the last micro-batch."""
        return nullcontext() if now else self.replicated.no_sync()


class Zero1(Ddp):
    """ZeRO stage 1 (Rajbhandari et al. 2020): as ddp, but each rank updates its part of the parameters and sends them round.

    So the state of the optimizer is divided by the ranks. torch's ZeroRedundancyOptimizer gives whole tensors to ranks; each
    rank's tensors travel as one. With fp16 it waits once a step to know whether a gradient overflowed.
    """

    def optimizer(self, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Make this rank's optimizer of its part, in one that sends the parameters round."""
        from torch.distributed.optim import ZeroRedundancyOptimizer

        trained = [p for p in self.parts.model.parameters() if p.requires_grad]
        if len(trained) < self.data_ranks:
            raise Unsupported(
                f"zero1 deals {len(trained)} tensors out to {self.data_ranks} devices: some would get none"
            )

        def of_rank(groups: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
            return make([parameter for group in groups for parameter in group["params"]])

        return ZeroRedundancyOptimizer(trained, of_rank, parameters_as_bucket_view=True)
