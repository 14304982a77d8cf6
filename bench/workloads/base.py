"""What all workloads have in common: a model, labelled samples in a training and a validation split, a loss, a score.

A batch is a tuple of tensors, the first dimension counts samples. torch is imported when something is built, not when the
arguments are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bench.process import die_with_parent
from bench.schema import Model, Scalar

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", ...]
SYNTHETIC = "synthetic"
"""Name of data that are random numbers, for throughput alone."""


class Split:
    """Samples that are fetched many at a time. `weights`, where not None, are relative chances to be drawn in training."""

    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return samples as one batch.

        What is left to chance (augmentation, masks) follows from the seed, which each batch of a training has of its own;
        with None from the samples themselves, so that they look the same each time.
        """
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.fetch(indices, None)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the indices of a batch of training, with replacement."""
        import torch

        if self.weights is None:
            return torch.randint(0, len(self), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def chances(indices: Sequence[int], columns: int, seed: int | None) -> torch.Tensor:
    """Return numbers in [0, 1), of shape (samples, columns): by seed and place in the batch, or by index for None.

    The mixing function of SplitMix64 (Steele, Lea and Flood 2014) over a counter: whichever process fetches a sample draws
    the same.
    """
    import numpy as np
    import torch

    rows = np.asarray(indices if seed is None else range(len(indices)), dtype=np.uint64)
    mixed: Any = rows[:, None] * np.uint64(columns) + np.arange(columns, dtype=np.uint64)
    mixed = (mixed + np.uint64(((seed or 0) + 1) * 0xD1342543DE82EF95 % 2**64)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / 2**24)


def balanced(classes: torch.Tensor) -> torch.Tensor:
    """Return weights of samples with these classes, by which each class is drawn equally often."""
    return 1.0 / classes.long().bincount()[classes.long()].double()


def digest(*parts: bytes | str) -> str:
    """SHA-256 of everything that the samples depend on, in this order."""
    held = hashlib.sha256()
    for part in parts:
        held.update(part.encode() if isinstance(part, str) else part)
    return held.hexdigest()


class WorkloadArgs(Model):
    """Arguments of every workload that concern its data.

    `data` names a source that the workload has, `synthetic`, or a path. `clean` drops what is empty or there twice; `balance`
    draws classes equally often; `augmentation` varies the samples of the training. `workers` processes of a DataLoader fetch
    batches in advance; `pin_memory` puts them where a GPU can read them by itself. `pretrained` is a folder with weights to
    start from.
    """

    data: str = "default"
    augmentation: Literal["none", "standard"] = "none"
    clean: bool = True
    balance: bool = False
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    pin_memory: bool = True
    pretrained: str | None = None

    def refusals(self) -> dict[str, str]:
        """Arguments that make no sense here, each with the reason."""
        return {}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name, reason in self.refusals().items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value!r}: {reason}")
        return self

    @property
    def sampling(self) -> str:
        """What changes the samples of the training without changing the data, for the digest; "" where nothing does."""
        changed = {"augmentation": self.augmentation, "balance": self.balance}
        return "".join(f"{k}={v};" for k, v in changed.items() if v != WorkloadArgs.model_fields[k].default)


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
        self.notes: dict[str, Scalar] = {}
        """Facts of the data and the model that end in the record."""

    def build(self) -> torch.nn.Module:
        """Return the model with random weights, on the current default device (which may be `meta`)."""
        raise NotImplementedError

    def initialize(self, model: torch.nn.Module) -> None:
        """Give weights and right buffers to a model of `build` on `meta` that was given memory since (`to_empty`)."""
        for module in reversed(list(model.modules())):  # a module after those inside it, which it may set otherwise
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy in nats over what is asked in a batch, a scalar on the device; never waits for the device."""
        import torch

        logits, labels = self.logits(model, batch), self.labels(batch)
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())

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
        model = workload.build().eval()  # one sample is no batch to normalise by
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        workload.loss(model, batch)
    total: int = counter.get_total_flops()
    return 3.0 * total


class SampleOrder:
    """Batches to fetch, for ever: indices drawn at random, and a seed; those of each data-parallel rank are its own."""

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        import torch

        self.split, self.batch_size = split, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        import torch

        while True:
            drawn = self.split.draw(self.batch_size, self.generator)
            yield drawn.tolist(), int(torch.randint(0, 2**31, (), generator=self.generator))


class _Fetched:
    """A split as a DataLoader wants it."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, drawn: tuple[list[int], int]) -> Batch:
        return self.split.fetch(*drawn)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _in_a_worker(number: int) -> None:
    die_with_parent()  # a rank ends without destructors, and would leave its workers behind


def training_batches(workload: Workload, batch_size: int, seed: int, *, on_gpu: bool) -> Iterator[Batch]:
    """Yield batches of the training split for ever, on the host; fetched by worker processes where the arguments say so."""
    from torch.utils.data import DataLoader

    args, sampler = workload.args, SampleOrder(workload.train, batch_size, seed)
    pin = args.pin_memory and on_gpu
    if not args.workers:
        for drawn in sampler:
            batch = workload.train.fetch(*drawn)
            yield tuple(tensor.pin_memory() for tensor in batch) if pin else batch
    dataset: Any = _Fetched(workload.train)
    loader: Any = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=args.workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_in_a_worker,
        multiprocessing_context="fork",
    )
    yield from loader


def first_samples(split: Split, count: int) -> Batch:
    """Return a batch of the first samples, over again where there are fewer: one whose shape alone matters."""
    return split.__getitems__([place % len(split) for place in range(count)])


def looked_at(workload: Workload, samples: int, ranks: int) -> int:
    """Return how many held-out samples are looked at: those that are there, as far as they divide by the ranks."""
    most = min(samples, len(workload.validation))
    return most - most % ranks


def validation_batches(workload: Workload, samples: int, batch_size: int, rank: int, ranks: int) -> Iterator[Batch]:
    """Yield this rank's share of the first `samples` held-out samples, the same number of batches on every rank.

    What does not divide by the ranks is left out.
    """
    mine = range(rank, looked_at(workload, samples, ranks), ranks)
    for first in range(0, len(mine), batch_size):
        yield workload.validation.__getitems__(mine[first : first + batch_size])
