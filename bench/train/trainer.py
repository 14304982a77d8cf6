"""The training of one rank: built from its strategies, warmed up, measured and validated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from bench import registry
from bench.figures.flags import loss_medians
from bench.record import Phase, Quality
from bench.schema import RunSpec
from bench.strategies import catalog
from bench.strategies.checkpoint import load_into
from bench.strategies.graph import compiled
from bench.strategies.parts import Parallelism, Parts
from bench.workloads.base import looked_at, training_batches, validation_batches

if TYPE_CHECKING:
    from bench.workloads.base import Batch

_CHANGES = ("finetune", "pruning", "quantization", "distillation", "attention", "memory")
"""Axes whose strategies change the parts of a training, in the order of application."""


class InvalidResult(Exception):
    """The training ran, but its result cannot be right."""


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    torch.get_device_module(device).synchronize(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work and all ranks have arrived."""
    wait(device)
    agree(0, device)


def agree(value: float, device: torch.device, how: Any = dist.ReduceOp.MAX) -> float:
    """Return the same number on all ranks: their maximum, or their reduction by `how`. Blocks until all ranks call it."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=how)
    return float(shared.item())


@dataclass
class Clock:
    """Times of one rank: phases of the run, and the steps of the window, recorded without synchronising in between.

    The window consists of stretches of steps, which validations separate.
    """

    device: torch.device
    phases: list[Phase] = field(default_factory=list)
    stretches: list[list[tuple[int, Any]]] = field(default_factory=list)
    forwards: list[tuple[int, Any]] = field(default_factory=list)

    def phase(self, name: str, start_ns: int) -> int:
        """Close a phase that began at `start_ns`; return the current time, at which the next one begins."""
        now = time.monotonic_ns()
        self.phases.append(Phase(name=name, start_ns=start_ns, end_ns=now))
        return now

    def _now(self) -> tuple[int, Any]:
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return time.monotonic_ns(), event

    def begin(self) -> None:
        """Begin a stretch of steps."""
        self.stretches.append([self._now()])

    def mark(self) -> None:
        """Mark the end of a step: host time, and on a GPU an event that is resolved after the window."""
        self.stretches[-1].append(self._now())

    def mark_forward(self) -> None:
        """Mark the end of the first forward pass of a step."""
        self.forwards.append(self._now())

    def _between(self, pairs: Any) -> list[float]:
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1e3 for (_, a), (_, b) in pairs]
        return [(b - a) / 1e9 for (a, _), (b, _) in pairs]

    @property
    def starts(self) -> list[tuple[int, Any]]:
        """Start of each measured step."""
        return [mark for stretch in self.stretches for mark in stretch[:-1]]

    def step_seconds(self) -> list[float]:
        """Length of each measured step in seconds."""
        return self._between((a, b) for stretch in self.stretches for a, b in pairwise(stretch))

    def forward_seconds(self) -> list[float]:
        """Length of the first forward pass of each measured step, its data included, in seconds."""
        return self._between(zip(self.starts, self.forwards, strict=False))


@dataclass
class Trainer:
    """State of a training: everything that an optimizer step needs, and the results of the steps so far."""

    parts: Parts
    parallel: Parallelism
    optimizer: torch.optim.Optimizer
    source: Iterator[Batch]
    batch_size: int
    scheduler: Any = None
    after_forward: Callable[[], None] = lambda: None
    data_wait_ns: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)
    began_ns: int = 0
    probed_ns: int = 0
    compile_seconds: float | None = None

    def __post_init__(self) -> None:
        self.batches = self._on_device()
        self.parameters, self.trainable_parameters = self.parts.count

    @property
    def spec(self) -> RunSpec:
        """The run as specified."""
        return self.parts.spec

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.parts.device

    @property
    def samples_per_step(self) -> int:
        """Samples per optimizer step, over all ranks."""
        copies: int = self.parallel.data_ranks
        return copies * self.batch_size * self.spec.gradient_accumulation_steps

    def _on_device(self) -> Iterator[Batch]:
        while True:
            start = time.monotonic_ns()
            batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in next(self.source))
            self.data_wait_ns += time.monotonic_ns() - start
            yield batch

    def step(self) -> None:
        """Train on `gradient_accumulation_steps` micro-batches, then update. Never waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.parallel.gradients(self.batches, self.after_forward)
        self.parts.precision.step(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.step()
        self.losses.append(loss)
        for after in self.parts.after_step:
            after(len(self.losses))

    def schedule(self, steps: int) -> None:
        """Make the learning rate follow the schedule of the run over the next `steps` steps."""
        self.scheduler = catalog.load("schedule", self.spec.schedule)(self.optimizer, steps)

    def mean_loss(self, step: int) -> float:
        """Return the mean loss of a step over all ranks. All ranks call it."""
        return self._mean(float(self.losses[step]))

    def median_losses(self) -> tuple[float, float]:
        """Return the medians of the first and the last losses, as means over all ranks. All ranks call it."""
        first, last = loss_medians([value for value in map(float, self.losses) if math.isfinite(value)])
        return self._mean(first), self._mean(last)

    def _mean(self, loss: float) -> float:
        ranks: int = self.parallel.loss_ranks
        return agree(loss, self.device, dist.ReduceOp.SUM) / ranks

    def evaluate(self, context: AbstractContextManager[Any]) -> tuple[float, float] | None:
        """Return loss and accuracy on held-out samples, equal on all ranks; None without held-out samples."""
        sums, parts = torch.zeros(3, dtype=torch.float64, device=self.device), self.parts
        shares = self.parallel.data_rank, self.parallel.data_ranks
        # Validation's shapes and modes would trigger a compilation inside the window.
        eager = nullcontext() if self.spec.compile.name == "eager" else torch.compiler.set_stance("force_eager")
        with torch.no_grad(), eager:
            for batch in validation_batches(parts.workload, self.spec.validation.samples, self.batch_size, *shares):
                moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
                with context:
                    sums += torch.stack([part.double() for part in self.parallel.score(moved)])
        dist.all_reduce(sums)
        loss, correct, count = sums.tolist()
        return (loss / count, correct / count) if count else None

    def validate(self) -> Quality | None:
        """Record the quality reached so far; None without held-out samples."""
        parts = self.parts
        parts.model.eval()
        scores = self.evaluate(parts.precision.context())
        parts.model.train()
        if scores is None:
            return None
        if not math.isfinite(scores[0]):
            raise InvalidResult(f"the validation loss is {scores[0]} after {len(self.losses)} steps")
        now = time.monotonic_ns()
        quality = Quality(
            step=len(self.losses),
            read_ns=now,
            seconds=(now - self.began_ns - self.probed_ns) / 1e9,
            samples=looked_at(parts.workload, self.spec.validation.samples, self.parallel.data_ranks),
            loss=scores[0],
            accuracy=scores[1],
        )
        self.quality.append(quality)
        return quality


def build(spec: RunSpec, device: torch.device, needed: Path | None) -> Trainer:
    """Build the model with the same random weights on every rank, and apply the strategies."""
    torch.manual_seed(spec.seed)
    precision = catalog.load("precision", spec.precision)(device)
    workload = registry.load("workload", spec.workload)(spec.workload_args)
    with torch.device("meta") if spec.parallelism.options.get("meta") else device:
        model = workload.build()
    model.train()
    parts = Parts(spec, device, workload, model, precision, needed, notes=dict(workload.notes))
    if needed is not None and spec.distillation.name == "none":  # with distillation the needed run is the teacher
        loaded, parts.fresh = load_into(model, needed)
        parts.notes |= loaded
    for axis in _CHANGES:
        catalog.load(axis, getattr(spec, axis))(parts)
    precision.convert(parts)
    parameters = list(parts.model.parameters())
    parts.count = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    parallel = catalog.load("parallelism", spec.parallelism)(parts)
    catalog.load("compile", spec.compile)(parts, parallel)
    parallel.wrap()

    batch_size = int(spec.batch_size_per_device or 1)
    seed = spec.seed * 65_537 + parallel.data_rank
    source = training_batches(workload, batch_size, seed, on_gpu=device.type == "cuda")
    return Trainer(parts, parallel, parallel.optimizer(catalog.load("optimizer", spec.optimizer)), source, batch_size)


def warm_up(trainer: Trainer) -> float:
    """Train for `warmup_steps` and `warmup_seconds` before the window; return the median seconds of the later steps."""
    spec, seconds = trainer.spec, []
    began = trainer.began_ns = time.monotonic_ns()
    while True:
        start = time.monotonic_ns()
        trainer.step()
        synchronize(trainer.device)
        seconds.append((time.monotonic_ns() - start) / 1e9)
        enough = len(seconds) >= spec.warmup_steps and (time.monotonic_ns() - began) / 1e9 >= spec.warmup_seconds
        if agree(0 if enough else 1, trainer.device) == 0:
            half = len(seconds) // 2
            later = sorted(seconds[half:])
            median = agree(later[len(later) // 2], trainer.device)
            if half and spec.compile.name != "eager":
                trainer.compile_seconds = max(0.0, sum(seconds[:half]) - half * median)
                trainer.parts.notes |= compiled()
            return median


class Window:
    """The measured steps: stretches between two edges (synchronise, barrier), with validations in between."""

    def __init__(self, trainer: Trainer, clock: Clock, step_seconds: float) -> None:
        self.trainer, self.clock, self.step_seconds = trainer, clock, step_seconds
        self.seconds = 0.0
        self.steps = 0
        self.stopped_by: str | None = None

    def missing(self) -> int:
        """Return the number of remaining steps, equal on all ranks.

        With `measure_seconds` it is derived from the speed so far. If that was too low, the ranks agree on more steps at
        the end of a stretch, which costs one reduction.
        """
        spec = self.trainer.spec
        if spec.measure_steps is not None:
            return spec.measure_steps - self.steps
        left = (spec.measure_seconds or 0) - self.seconds
        if not self.steps:
            return max(1, math.ceil(1.03 * left / self.step_seconds))
        return max(0, math.ceil(agree(left, self.trainer.device) / self.step_seconds))

    def measure(self) -> None:
        """Run the measured steps; stop early when the target is reached or patience runs out."""
        trainer, every = self.trainer, self.trainer.spec.validation.every_steps
        trainer.data_wait_ns = 0
        while (steps := self.missing()) > 0 and self.stopped_by is None:
            if self.steps == 0:
                trainer.parts.planned_steps = len(trainer.losses) + steps
                trainer.schedule(steps)
            self._stretch(steps)
            if every is not None and self.steps % every == 0:
                start = time.monotonic_ns()
                trainer.validate()
                synchronize(trainer.device)
                self.clock.phase("validation", start)
                self.stopped_by = self._stops()

    def _stretch(self, steps: int) -> None:
        """Train for `steps` steps; continue until `measure_seconds` have passed, but at most to the next validation."""
        trainer, clock, before = self.trainer, self.clock, self.seconds
        every = trainer.spec.validation.every_steps
        trainer.after_forward = clock.mark_forward
        synchronize(trainer.device)
        start = time.monotonic_ns()
        clock.begin()
        while steps:
            steps = steps if every is None else min(steps, every - self.steps % every)
            for _ in range(steps):
                trainer.step()
                clock.mark()
            synchronize(trainer.device)
            end = time.monotonic_ns()
            self.seconds = before + (end - start) / 1e9
            self.steps += steps
            steps = 0 if every is not None and self.steps % every == 0 else self.missing()
        clock.phases.append(Phase(name="steady", start_ns=start, end_ns=end))
        trainer.after_forward = lambda: None

    def _stops(self) -> str | None:
        spec, quality = self.trainer.spec, self.trainer.quality
        if spec.target is not None and quality[-1:] and quality[-1].reaches(spec.target):
            return "target"
        losses = [point.loss for point in quality]
        patience = spec.validation.patience
        if patience is not None and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
            return "patience"
        return None
