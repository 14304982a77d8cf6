"""The parts of a training that strategies change before it begins, and what a rank's share of it looks like.

The modules of strategies import torch inside their functions: a suite is checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.schema import RunSpec, Scalar, why_not_shared
from bench.strategies.precision import Precision, Unsupported

if TYPE_CHECKING:
    import torch

    from bench.workloads.base import Batch, Workload

_AfterStep = Callable[[int], None]
_Served = Callable[["torch.nn.Module"], "torch.nn.Module"]


@dataclass
class Parts:
    """What is put together for one training. A strategy is a function `(parts, **options) -> None` that changes it.

    Strategies are applied in the order finetune, pruning, quantization, distillation, attention, memory; then parallelism
    shards or replicates `model`, and compile comes last. `needed` is the folder of the run that `needs` names. `loss` is
    called as `loss(model, batch)`. After each step of the optimizer all of `after_step` are called with the number of steps
    so far; `serve` turn the trained model into the one that would be served. `notes` end in the record. `count` is the number
    of all parameters and of those that are trained, before the model is cut up; `flops_share` the share of the workload's
    FLOP that is left (frozen weights have no gradients, removed layers nothing). `fresh` are the names of tensors that the
    checkpoint of the needed run did not have; `planned_steps` the steps of the optimizer that the training will take, 0
    while that is not known.
    """

    spec: RunSpec
    device: torch.device
    workload: Workload
    model: torch.nn.Module
    precision: Precision
    needed: Path | None = None
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor] = field(init=False)
    after_step: list[_AfterStep] = field(default_factory=list)
    serve: list[_Served] = field(default_factory=list)
    notes: dict[str, Scalar] = field(default_factory=dict)
    count: tuple[int, int] = (0, 0)
    flops_share: float = 1.0
    fresh: frozenset[str] = frozenset()
    planned_steps: int = 0

    def __post_init__(self) -> None:
        self.loss = self.workload.loss

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """The repeated layers of the model, in order."""
        return self.workload.blocks(self.model)


def unchanged(parts: Parts) -> None:
    """Change nothing: what an axis does where a suite does not speak of it."""


class Parallelism:
    """How the ranks share the training: one copy of the model on each rank's own samples, unless a subclass says otherwise.

    Subclasses take their options as keyword arguments with defaults. `data_rank` of `data_ranks` is this rank's share of
    the samples; `loss_ranks` ranks hold the loss of a step (on others it is 0). `apart` says whether a forward pass waits
    for no other rank, so that its time shows stragglers.
    """

    apart = True
    regional = False
    """Whether each block is compiled by itself: where data are exchanged between the blocks."""

    def __init__(self, parts: Parts) -> None:
        import torch.distributed as dist

        from bench.strategies.objective import Objective

        if why := why_not_shared(parts.spec):
            raise Unsupported(why)
        self.parts = parts
        self.data_rank, self.data_ranks = dist.get_rank(), dist.get_world_size()
        self.loss_ranks = dist.get_world_size()
        self.module: torch.nn.Module = Objective(parts)

    def compile(self, **options: Any) -> None:
        """Compile the step: the whole of it, or each block by itself where collectives stand between them.

        Of a block it is `forward` that is compiled, not the hooks around it, which gather its weights: so it is one graph,
        whether the block is sharded before or after. Blocks of a kind share what was compiled for the first.
        """
        import torch

        if not self.regional:
            self.module.compile(**options)
            return
        if not self.parts.blocks:
            raise Unsupported("this parallelism is compiled block by block, and the workload names no blocks")
        for block in self.parts.blocks:
            block.forward = torch.compile(block.forward, **options)

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Context of one micro-batch; gradients of all but the last of a step stay where they are (`now` is False)."""
        return nullcontext()

    def gradients(self, batches: Iterable[Batch], after_forward: Callable[[], None]) -> torch.Tensor:
        """Add up the gradients of the micro-batches of one step; return their mean loss, on the device, without waiting."""
        import torch

        accumulate = self.parts.spec.gradient_accumulation_steps
        total = torch.zeros((), device=self.parts.device)
        for micro, batch in zip(range(accumulate), batches, strict=False):
            with self.exchange(now=micro == accumulate - 1):
                with self.parts.precision.context():
                    loss = self.module(*batch) / accumulate
                if micro == 0:
                    after_forward()
                self.parts.precision.backward(loss)
            total += loss.detach()
        return total

    def optimizer(self, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Make the optimizer of this rank's part of the trained parameters."""
        return make([p for p in self.parts.model.parameters() if p.requires_grad])

    def score(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sums of `Workload.score` for a batch, on every rank that holds the batch."""
        return self.parts.workload.score(self.parts.model, batch)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Return the whole weights on the host, on rank 0; None on the others. All ranks call it."""
        import torch.distributed as dist

        if dist.get_rank():
            return None
        return {name: tensor.detach().cpu() for name, tensor in self.parts.model.state_dict().items()}
