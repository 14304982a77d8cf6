"""The base of all workloads: a model, a training split and a validation split of labelled samples, a loss, a score.

A batch is a tuple of tensors whose first dimension counts samples. torch is imported when something is built, not when
arguments are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from bench.process import die_with_parent
from bench.schema import Model, Scalar

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", ...]
SYNTHETIC = "synthetic"
"""Name of random data. They serve to measure throughput, not quality."""


class Split:
    """Samples that are fetched a batch at a time. `weights` are relative probabilities to be drawn in training, or None."""

    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, indices: Sequence[int], seed: int | None) -> Batch:
        """Return samples as one batch.

        The seed determines what is random (augmentation, masks). Each training batch has its own seed. With None the
        indices determine it, so a sample looks the same each time.
        """
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.fetch(indices, None)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the indices of a training batch, with replacement."""
        import torch

        if self.weights is None:
            return torch.randint(0, len(self), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


def chances(indices: Sequence[int], columns: int, seed: int | None) -> torch.Tensor:
    """Return random numbers in [0, 1) of shape (samples, columns).

    They depend on the seed and the position in the batch, or on the index where the seed is None. The generator is the
    mixing function of SplitMix64 (Steele, Lea and Flood 2014) over a counter, so every process draws the same numbers.
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
    """Return the weight of each sample, so that every class is drawn equally often."""
    return 1.0 / classes.long().bincount()[classes.long()].double()


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of everything that the samples depend on, in this order."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()


@dataclass
class Corpus:
    """A text that was read and split: its name, digest, splits, class names and facts for the record."""

    dataset: str
    digest: str
    train: Split
    validation: Split
    classes: list[str] = field(default_factory=list)
    notes: dict[str, Scalar] = field(default_factory=dict)


class Layout(NamedTuple):
    """What the arguments say about a model before it is built, to refuse strategies that do not fit it.

    `blocks` counts the repeated layers that `Workload.blocks` returns, `heads` those of queries and of keys in a decoder that
    can be divided. `tokens` is the length of a sample.
    """

    blocks: int = 0
    heads: tuple[int, int] | None = None
    attention: bool = False
    shares_layers: bool = False
    tokens: int = 0


class WorkloadArgs(Model):
    """The data arguments that every workload has.

    `data` names a source of the workload, `synthetic`, or a path. `clean` drops empty and duplicate samples. `balance`
    draws classes equally often. `augmentation` varies training samples. `workers` DataLoader processes prefetch batches.
    `pin_memory` puts batches into page-locked memory. `pretrained` is a folder with initial weights.
    """

    plain: ClassVar[bool] = False
    """A model of ours: not of transformers, and without repeated layers."""

    data: str = "default"
    augmentation: Literal["none", "standard"] = "none"
    clean: bool = True
    balance: bool = False
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    pin_memory: bool = True
    pretrained: str | None = None

    def layout(self) -> Layout | None:
        """Return what is known about the model; None if nothing is."""
        return Layout() if self.plain else None

    def refusals(self) -> dict[str, str]:
        """Return the arguments that the workload does not support, each with the reason."""
        return {"pretrained": "pretrained weights are for models of transformers"}

    @model_validator(mode="after")
    def _supported(self) -> Self:
        for name, reason in self.refusals().items():
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value!r}: {reason}")
        return self

    @property
    def sampling(self) -> str:
        """Settings that change training samples but not the data, as text for the digest; empty at the defaults."""
        changed = {"augmentation": self.augmentation, "balance": self.balance}
        return "".join(f"{k}={v};" for k, v in changed.items() if v != WorkloadArgs.model_fields[k].default)


class Workload:
    """Base of the workloads of one rank. Subclasses set these attributes and build the model."""

    Args: ClassVar[type[WorkloadArgs]]
    modules: ClassVar[tuple[str, ...]] = ()
    """Modules that the node imports before it forks, so that runs start warm."""

    args: Any
    dataset: str
    dataset_digest: str
    tokens_per_sample: int | None = None
    train: Split
    validation: Split

    def __init__(self, args: dict[str, Any]) -> None:
        self.args = self.Args.model_validate(args)
        self.notes: dict[str, Scalar] = {}
        """Facts about the data and the model, for the record."""

    def build(self) -> torch.nn.Module:
        """Return the model with random weights on the current default device, which may be `meta`."""
        raise NotImplementedError

    def initialize(self, model: torch.nn.Module) -> None:
        """Initialise weights and buffers of a model that was built on `meta` and then given memory (`to_empty`)."""
        for module in reversed(list(model.modules())):  # children first: a module may override what they set
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def use(self, corpus: Corpus) -> None:
        """Train and validate on a text that was read."""
        self.train, self.validation, self.notes = corpus.train, corpus.validation, corpus.notes
        self.dataset, self.dataset_digest = corpus.dataset, corpus.digest

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of a batch in nats, a scalar on the device; never waits for the device."""
        import torch

        logits, labels = self.logits(model, batch), self.labels(batch)
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())

    def logits(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the scores of the model for a batch, of shape (..., classes)."""
        raise NotImplementedError

    def labels(self, batch: Batch) -> torch.Tensor:
        """Return the correct classes, of shape (...), with -100 where nothing is to be predicted."""
        raise NotImplementedError

    def blocks(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """Return the repeated layers in order, the units of sharding, recomputation and freezing; [] if there are none."""
        return []

    def flops_per_sample(self) -> float:
        """Return the model FLOP of training on one sample, forward and backward; counted unless overridden by a formula."""
        return counted_flops(self)

    def score(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return sums over a batch, on the device: loss in nats, correct predictions, all predictions."""
        import torch

        logits, labels = self.logits(model, batch), self.labels(batch)
        logits, labels = logits.flatten(0, -2).float(), labels.flatten()
        counted = labels != -100
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        return loss, ((logits.argmax(-1) == labels) & counted).sum(), counted.sum()


def counted_flops(workload: Workload) -> float:
    """Count the FLOP of one sample with torch's FlopCounterMode on the meta device, which computes nothing.

    It counts matrix products, convolutions and attention of the forward pass. Attention uses the plain kernel, as fused
    kernels are not counted everywhere. The backward pass takes twice as many.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    batch = tuple(tensor.to("meta") for tensor in workload.train.__getitems__([0]))
    with torch.device("meta"):
        model = workload.build().eval()  # batch normalisation needs more than one sample in training mode
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        workload.loss(model, batch)
    return 3.0 * float(counter.get_total_flops())


class SampleOrder:
    """An endless order of batches: random indices and a seed for each. Every data-parallel rank has its own order."""

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        import torch

        self.split, self.batch_size = split, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        import torch

        while True:
            indices = self.split.draw(self.batch_size, self.generator)
            yield indices.tolist(), int(torch.randint(0, 2**31, (), generator=self.generator))


@dataclass
class _Dataset:
    """A split with the interface that a DataLoader expects."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, batch: tuple[list[int], int]) -> Batch:
        return self.split.fetch(*batch)


def training_batches(workload: Workload, batch_size: int, seed: int, *, on_gpu: bool) -> Iterator[Batch]:
    """Yield training batches endlessly, on the host. With `workers` DataLoader processes fetch them."""
    from torch.utils.data import DataLoader

    args, sampler = workload.args, SampleOrder(workload.train, batch_size, seed)
    pin = args.pin_memory and on_gpu
    if not args.workers:
        for indices, batch_seed in sampler:
            batch = workload.train.fetch(indices, batch_seed)
            yield tuple(tensor.pin_memory() for tensor in batch) if pin else batch
    yield from DataLoader(
        _Dataset(workload.train),
        batch_sampler=sampler,
        num_workers=args.workers,
        collate_fn=lambda batch: batch,
        pin_memory=pin,
        worker_init_fn=lambda number: die_with_parent(),  # ranks end without destructors, which would end their workers
        multiprocessing_context="fork",
    )


def first_samples(split: Split, count: int) -> Batch:
    """Return a batch of the first samples, repeated where there are fewer. Only its shape is meant to be used."""
    return split.__getitems__([index % len(split) for index in range(count)])


def looked_at(workload: Workload, samples: int, ranks: int) -> int:
    """Return how many held-out samples are evaluated: at most `samples`, and a multiple of the number of ranks."""
    most = min(samples, len(workload.validation))
    return most - most % ranks


def validation_batches(workload: Workload, samples: int, batch_size: int, rank: int, ranks: int) -> Iterator[Batch]:
    """Yield this rank's share of the first `samples` held-out samples.

    Every rank gets the same number of batches; a remainder that does not divide by the ranks is left out.
    """
    mine = range(rank, looked_at(workload, samples, ranks), ranks)
    for first in range(0, len(mine), batch_size):
        yield workload.validation.__getitems__(mine[first : first + batch_size])
