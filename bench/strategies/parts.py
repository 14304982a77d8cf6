"""The parts of a training that strategies change before it begins, and one rank's share of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.schema import RunSpec, Scalar
from bench.workloads.base import Batch, Workload

_AfterStep = Callable[[int], None]
_Served = Callable[["torch.nn.Module"], "torch.nn.Module"]


class Unsupported(Exception):
    """Hardware, a library or the built model does not support the run: it is skipped with this reason, it does not fail."""


def needs_capability(
    device: torch.device, needed: tuple[int, int], what: str, *, amd: tuple[str, ...] | None = ()
) -> None:
    """Raise Unsupported on a GPU that cannot do `what`.

    It is done by NVIDIA GPUs of the capability `needed` or newer, and by AMD GPUs of the architectures `amd` (None: all).
    Torch's capability of an AMD GPU is part of the number of its architecture: gfx90a has 9.0, and no 8-bit floats.
    """
    name = torch.cuda.get_device_name(device)
    if torch.version.hip:
        architecture = torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
        if amd is not None and architecture not in amd:
            allowed = f"AMD GPUs of {' or '.join(amd)}" if amd else "NVIDIA GPUs"
            raise Unsupported(f"{what} is supported on {allowed}, not on {name} ({architecture})")
    elif torch.cuda.get_device_capability(device) < needed:
        raise Unsupported(f"{what} needs compute capability {needed[0]}.{needed[1]} or newer, not {name}")


@dataclass
class Precision:
    """How one step computes: the context of the forward pass, and a loss scaler where small gradients would underflow.

    `convert` changes the model after the other strategies, and before the model is sharded. `stored` is the type of the
    parameters. `products` is the type of matrix products where it is narrower than that of all other operations.
    """

    autocast: tuple[str, torch.dtype] | None = None
    scaler: Any = None
    convert: Callable[[Parts], None] = lambda parts: None
    stored: torch.dtype | None = None
    products: torch.dtype | None = None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type that a layer computes in."""
        return self.autocast[1] if self.autocast else self.stored or torch.float32

    @property
    def matmul_dtype(self) -> torch.dtype:
        """Type of most matrix products."""
        return self.products or self.compute_dtype

    def context(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass and the loss."""
        return torch.autocast(self.autocast[0], dtype=self.autocast[1]) if self.autocast else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass, of the scaled loss if there is a scaler."""
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make one step of the optimizer; the scaler omits it after an overflow."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


@dataclass
class Parts:
    """The parts of one training. A strategy is a function `(parts, **options) -> None` that changes them.

    Strategies are applied in the order finetune, pruning, quantization, distillation, attention, memory. Then parallelism
    shards or replicates `model`, and compile comes last. `needed` is the folder of the run that `needs` names. `loss` is
    called as `loss(model, batch)`. After each step of the optimizer, all of `after_step` are called with the number of
    steps so far. `serve` turn the trained model into its served form. `notes` become part of the record. `count` is the
    number of all parameters and of the trained ones, before the model is divided. `flops_share` is the remaining share of
    the workload's FLOP: frozen weights have no gradients, removed layers compute nothing. `fresh` are the names of tensors
    that the checkpoint of the needed run lacks. `planned_steps` is the number of optimizer steps, 0 while it is unknown.
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
    """Change nothing: the default of several axes."""


def materialize(parts: Parts, part: int, *, on_host: bool = False) -> None:
    """Give memory and weights to a model that was built on `meta` and divided; `part` is the number of this rank's part."""
    parts.model.to_empty(device="cpu" if on_host else parts.device)
    with torch.random.fork_rng(devices=[parts.device] if parts.device.type == "cuda" else []):
        torch.manual_seed(parts.spec.seed * 65_537 + part)
        parts.workload.initialize(parts.model)


class Objective(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Batch -> loss: the module that is replicated, sharded and compiled, so that the loss is compiled with the model."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.model = parts.model
        self.parts = parts

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return self.parts.loss(self.model, batch)


class Parallelism:
    """How the ranks share the training: by default each rank trains a copy of the model on its own samples.

    Subclasses take their options as keyword arguments. `data_rank` of `data_ranks` is this rank's share of the samples.
    `loss_ranks` ranks hold the loss of a step; on others it is 0. `apart`: a forward pass does not wait for other ranks, so
    that its time shows stragglers. `regional`: each block is compiled separately, because ranks communicate between blocks.
    """

    apart = True
    regional = False

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.data_rank, self.data_ranks = dist.get_rank(), dist.get_world_size()
        self.loss_ranks = dist.get_world_size()
        self.module: torch.nn.Module = Objective(parts)

    def compile(self, **options: Any) -> None:
        """Compile the step: as a whole, or each block separately where ranks communicate between blocks.

        Only the block's `forward` is compiled, not the hooks that gather its weights. So it is one graph, whether the block
        is sharded before or after. Blocks of one class share the compiled code.
        """
        if not self.regional:
            self.module.compile(**options)
            return
        for block in self.parts.blocks:
            block.forward = torch.compile(block.forward, **options)

    def wrap(self) -> None:
        """Let the module exchange its gradients. Called once, after it was compiled or captured."""

    def exchange(self, *, now: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-batch; gradients are exchanged only with the last one of a step (`now`)."""
        return nullcontext()

    def gradients(self, batches: Iterable[Batch], after_forward: Callable[[], None]) -> torch.Tensor:
        """Accumulate the gradients of the micro-batches of one step; return their mean loss on the device, without a wait."""
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
        """Return the whole weights on the host of rank 0, None on other ranks. All ranks call it."""
        if dist.get_rank():
            return None
        return {name: tensor.detach().cpu() for name, tensor in self.parts.model.state_dict().items()}
