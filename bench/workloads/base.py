"""What all workloads have in common: a model, labelled samples in a training and a validation split, a loss, a score.

A batch is a tuple of tensors, the first dimension counts samples. torch is imported when something is built, not when the
arguments are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from bench.schema import Model

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", ...]
SYNTHETIC = "synthetic"
"""Name of data that are random numbers, for throughput alone."""


class Split(Protocol):
    """Samples that are fetched many at a time. `weights`, where not None, are relative chances to be drawn in training."""

    weights: torch.Tensor | None

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class WorkloadArgs(Model):
    """Arguments of every workload that concern its data.

    `data` names a source that the workload has, `synthetic`, or a path. `workers` processes of a DataLoader fetch batches
    in advance; `pin_memory` puts them where a GPU can read them by itself.
    """

    data: str = "default"
    augmentation: Literal["none", "standard"] = "none"
    clean: bool = True
    balance: bool = False
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    pin_memory: bool = True
    checkpoint: str | None = None


class Workload:
    """Base of the workloads of one rank. Subclasses set what stands here, and build the model."""

    Args: ClassVar[type[WorkloadArgs]]
    modules: ClassVar[tuple[str, ...]] = ()
    """What the node imports before it forks, so that a run starts warm."""

    args: Any
    dataset: str
    dataset_digest: str
    tokens_per_sample: int | None = None
    train: Split
    validation: Split

    def __init__(self, args: dict[str, Any]) -> None:
        self.args = self.Args.model_validate(args)

    def build(self) -> torch.nn.Module:
        """Return the model with random weights, on the current default device (which may be `meta`)."""
        raise NotImplementedError

    def initialize(self, model: torch.nn.Module) -> None:
        """Give weights and right buffers to a model of `build` on `meta` that was given memory since (`to_empty`)."""
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss over the samples of a batch, a scalar on the device; never waits for the device."""
        raise NotImplementedError

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """What the model says of a batch, of shape (..., classes)."""
        raise NotImplementedError

    def labels(self, batch: Batch) -> torch.Tensor:
        """What it should have said: classes of shape (...), -100 where nothing is asked."""
        raise NotImplementedError

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the repeated layers in order, what sharding, recomputation and freezing work on; [] where there are none."""
        return []

    def flops_per_sample(self) -> float:
        """Model FLOP of training on one sample, forward and backward; counted unless a workload has a formula."""
        return counted_flops(self)

    def score(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return sums over a batch, on the device: of the loss in nats, of correct answers, of the answers asked for."""
        import torch

        logits, labels = self.logits(model, batch), self.labels(batch)
        logits, labels = logits.flatten(0, -2).float(), labels.flatten()
        asked = labels != -100
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        correct = ((logits.argmax(-1) == labels) & asked).sum()
        return loss, correct, asked.sum()


def counted_flops(workload: Workload) -> float:
    """Count the FLOP of one sample with torch's FlopCounterMode on the meta device, which neither computes nor takes memory.

    Matrix products, convolutions and attention (by its plain kernel: fused ones are not counted everywhere) of the forward
    pass; the backward pass has twice as many.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    batch = tuple(tensor.to("meta") for tensor in workload.train.__getitems__([0]))
    with torch.device("meta"):
        model = workload.build()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        workload.loss(model, batch)
    total: int = counter.get_total_flops()
    return 3.0 * total


class Sampler:
    """Indices of batches, drawn at random with replacement for ever; those of each data-parallel rank are its own."""

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        import torch

        self.split, self.batch_size = split, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        while True:
            if self.split.weights is None:
                drawn = torch.randint(0, len(self.split), (self.batch_size,), generator=self.generator)
            else:
                drawn = torch.multinomial(
                    self.split.weights, self.batch_size, replacement=True, generator=self.generator
                )
            yield drawn.tolist()


class _Fetched:
    """A split as a DataLoader wants it."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.split.__getitems__(indices)

    def __getitem__(self, index: int) -> Batch:
        return self.split.__getitems__([index])


def _as_it_is(batch: Batch) -> Batch:
    return batch


def training_batches(workload: Workload, batch_size: int, seed: int, *, on_gpu: bool) -> Iterator[Batch]:
    """Yield batches of the training split for ever, on the host; fetched by worker processes where the arguments say so."""
    from torch.utils.data import DataLoader

    args, sampler = workload.args, Sampler(workload.train, batch_size, seed)
    pin = args.pin_memory and on_gpu
    if not args.workers:
        for indices in sampler:
            batch = workload.train.__getitems__(indices)
            yield tuple(tensor.pin_memory() for tensor in batch) if pin else batch
    dataset: Any = _Fetched(workload.train)
    loader: Any = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=args.workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        multiprocessing_context="fork",
    )
    yield from loader


def validation_batches(workload: Workload, samples: int, batch_size: int, rank: int, ranks: int) -> Iterator[Batch]:
    """Yield this rank's share of the first `samples` held-out samples, the same number of batches on every rank.

    What does not divide by the ranks is left out.
    """
    most = min(samples, len(workload.validation))
    mine = range(rank, most - most % ranks, ranks)
    for first in range(0, len(mine), batch_size):
        yield workload.validation.__getitems__(mine[first : first + batch_size])
