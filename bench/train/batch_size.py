"""The largest batch that fits into the memory of a device, found before the training that uses it.

The trials use an eager training of their own, which is discarded: the measured training starts from the same weights as
without trials. The method depends on the consequence of a failure. A GPU reports when its memory is full; where a forward
pass waits for no other rank, sizes are tried until that happens. Elsewhere the peaks of a few small sizes are extrapolated
linearly: sharded models, whose ranks would wait for the failed one, and CPUs, where the kernel would kill the process.

Without activations a step needs its weights, gradients and optimizer state, so the line begins there: it is never less steep
than the memory of a sample.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from bench.schema import Choice, RunSpec, Scalar
from bench.train.probes import is_out_of_memory, peak_memory, reset_peak_memory
from bench.train.trainer import Trainer, agree, build, synchronize, wait
from bench.workloads.base import first_samples

TRIAL_SECONDS = 4.0
"""Time limit of the trials on a CPU, in seconds."""
_VISIBLE_BYTES = 1 << 22
"""Growth of the peak in bytes that counts as more than noise."""
_CPU_SHARE, _GPU_SHARE = 0.8, 0.92
"""Shares that are filled: of the free memory of a CPU, and of what a rank may allocate on a GPU (the rest are holes)."""


def limit_memory(limit: float | None, device: torch.device) -> None:
    """Make torch refuse to allocate more bytes than this on a GPU; None allows all of its memory."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit or total) / total), device)


def _limit(spec: RunSpec, device: torch.device) -> float:
    """Return the bytes that the trials may fill."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return float(_GPU_SHARE * min(spec.memory_limit_bytes or free, free))
    return float(spec.memory_limit_bytes or _CPU_SHARE * psutil.virtual_memory().available / spec.devices_per_node)


class _Trials:
    """A training with batches of any size, built from the first samples of the data."""

    def __init__(self, spec: RunSpec, device: torch.device, needed: Path | None) -> None:
        small = {"batch_size_per_device": 1, "gradient_accumulation_steps": min(2, spec.gradient_accumulation_steps)}
        self.trainer: Trainer = build(spec.changed(**small, compile=Choice(name="eager")), device, needed)
        self.device, self.tried = device, 0

    def step(self, size: int) -> float:
        """Run one whole step of this size; return its seconds. All ranks call it."""
        batch = first_samples(self.trainer.parts.workload.train, size)
        self.trainer.batches = itertools.repeat(tuple(tensor.to(self.device) for tensor in batch))
        self.tried += 1
        began = time.monotonic()
        self.trainer.step()
        synchronize(self.device)
        return time.monotonic() - began

    def fits(self, size: int) -> bool:
        """Whether a forward and backward pass of this size fits into the memory of every GPU; gradients are not reduced."""
        parallel, fits = self.trainer.parallel, True
        exchange = parallel.exchange
        parallel.exchange = lambda *, now: exchange(now=False)  # type: ignore[method-assign]
        self.tried += 1
        try:
            batch = first_samples(self.trainer.parts.workload.train, size)
            moved = tuple(tensor.to(self.device) for tensor in batch)
            parallel.gradients(itertools.repeat(moved), lambda: None)
            wait(self.device)
            del moved
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        finally:
            parallel.exchange = exchange  # type: ignore[method-assign]
        self.trainer.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        return agree(float(fits), self.device, dist.ReduceOp.MIN) > 0


def find_batch(spec: RunSpec, device: torch.device, needed: Path | None) -> tuple[int, dict[str, Scalar]]:
    """Return the largest micro-batch that fits, equal on all ranks, and notes on the search.

    Raises MemoryError if not even one sample fits. All ranks call it.
    """
    limit, before = agree(_limit(spec, device), device, dist.ReduceOp.MIN), reset_peak_memory(device)
    limit_memory(limit, device)
    trials = _Trials(spec, device, needed)
    trials.step(1)  # allocates the optimizer state and the buffers of collectives
    tried = device.type == "cuda" and trials.trainer.parallel.apart
    size = search(trials.fits, spec.batch_size_cap) if tried else _extended(trials, spec, limit, before)
    limit_memory(spec.memory_limit_bytes, device)
    notes: dict[str, Scalar] = {
        "batch_found_by": "cap" if size == spec.batch_size_cap else "trial" if tried else "line",
        "batch_trials": trials.tried,
        "batch_memory_limit_bytes": round(limit),
    }
    del trials
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return size, notes


def search(fits: Callable[[int], bool], cap: int) -> int:
    """Return the largest size up to `cap` that fits, to within 1/64: doubling, then bisection. 1 is known to fit."""
    good, bad = 1, 0
    while not bad and good < cap:
        size = min(2 * good, cap)
        if fits(size):
            good = size
        else:
            bad = size
    while bad - good > max(1, good // 64):
        size = (good + bad) // 2
        if fits(size):
            good = size
        else:
            bad = size
    return good


def _extended(trials: _Trials, spec: RunSpec, limit: float, before: int) -> int:
    """Extrapolate the peaks of a few small sizes to the limit."""
    device, points, spent = trials.device, [(0, agree(static_bytes(trials.trainer), trials.device))], 0.0
    for size in (2**k for k in range(20)):
        if size > spec.batch_size_cap:
            break
        reset_peak_memory(device)
        seconds = [trials.step(size) for _ in range(2)]
        spent += sum(seconds)
        points.append((size, agree(peak_memory(device, before), device)))
        # The next step takes twice as long and at most twice the memory above that without samples. All ranks must decide
        # alike. One size says nothing about the memory of a sample, so time alone ends the trials after the second.
        slow = len(points) > 2 and agree(spent + 4 * median(seconds), device) > TRIAL_SECONDS
        if slow or 2 * points[-1][1] - points[0][1] > limit:
            break
    return line(points, limit, spec.batch_size_cap)


def static_bytes(trainer: Trainer) -> int:
    """Return the bytes of weights, gradients and optimizer state on this rank."""
    trained = [p for p in trainer.parts.model.parameters() if p.requires_grad]
    state = getattr(trainer.optimizer, "optim", trainer.optimizer).state.values()
    tensors = [*trainer.parts.model.parameters(), *trained, *(t for values in state for t in values.values())]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, torch.Tensor)]
    return sum(t.nbytes for t in local if t.device.type == trainer.device.type)


def line(points: list[tuple[int, float]], limit: float, cap: int) -> int:
    """Return the size at which the line through the last two distinct peaks reaches the limit, at most `cap`.

    `points` are pairs of size and peak in bytes, in order; the first is what a step without samples needs at least. Raises
    MemoryError if one sample exceeds the limit.
    """
    first, last = points[1], points[-1]
    if first[1] > limit:
        raise MemoryError(f"a batch of {first[0]} needs {first[1] / 1e9:.3g} GB; {limit / 1e9:.3g} GB are available")
    # The nearest smaller size whose peak is visibly lower; growth that cannot be seen may be as large as what can.
    size, peak = next((p for p in points[-2::-1] if last[1] - p[1] >= _VISIBLE_BYTES), (0, last[1] - _VISIBLE_BYTES))
    slope = (last[1] - peak) / (last[0] - size)
    return max(1, min(cap, int(last[0] + (limit - last[1]) / slope)))
