"""The largest batch that fits into the memory of a device, found before the training that uses it.

The trials use an eager training of their own, which is discarded: the measured training starts from the same weights as
without trials. The method depends on the consequence of a failure. A GPU reports when its memory is full; where a forward
pass waits for no other rank, sizes are tried until that happens. Elsewhere the peaks of a few small sizes are extrapolated
linearly: sharded models, whose ranks would wait for the failed one, and CPUs, where the kernel would kill the process.
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

from bench.schema import Choice, RunSpec, Scalar
from bench.train.probes import is_out_of_memory, peak_memory, reset_peak_memory
from bench.train.trainer import Trainer, agree, build, synchronize
from bench.workloads.base import first_samples

TRIAL_SECONDS = 4.0
"""Time limit of the trials on a CPU, in seconds."""
_VISIBLE_BYTES = 1 << 22
"""Growth of the peak in bytes that counts as more than noise."""
_CPU_SHARE, _GPU_SHARE = 0.8, 0.92
"""Shares of the free memory that are filled by default."""


def limit_memory(spec: RunSpec, device: torch.device) -> None:
    """Make torch refuse to allocate more than `memory_limit_bytes` on a GPU."""
    if spec.memory_limit_bytes is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, spec.memory_limit_bytes / total), device)


def _limit(spec: RunSpec, device: torch.device) -> float:
    """Return the bytes that a rank may allocate."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return float(min(spec.memory_limit_bytes or free, _GPU_SHARE * free))
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
        seconds: float = time.monotonic() - began
        return seconds

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
            torch.cuda.synchronize(self.device)
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
    trials = _Trials(spec, device, needed)
    trials.step(1)  # allocates the optimizer state and the buffers of collectives
    tried = device.type == "cuda" and trials.trainer.parallel.apart
    if tried:
        size = search(trials.fits, spec.batch_size_cap)
        if size < spec.batch_size_cap:
            size = max(1, size - max(1, size // 32))  # headroom for fragmentation in a longer training
        trials.step(size)
    else:
        size = _extended(trials, spec, limit, before)
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
    device, points, spent = trials.device, [], 0.0
    for size in (2**k for k in range(20)):
        if size > spec.batch_size_cap:
            break
        reset_peak_memory(device)
        seconds = [trials.step(size) for _ in range(2)]
        spent += sum(seconds)
        points.append((size, agree(peak_memory(device, before), device)))
        # The next step takes twice as long and at most twice the memory. All ranks must decide alike.
        if agree(spent + 4 * median(seconds), device) > TRIAL_SECONDS or 2 * points[-1][1] > limit:
            break
    return line(points, limit, spec.batch_size_cap)


def line(points: list[tuple[int, float]], limit: float, cap: int) -> int:
    """Return the size at which the line through the last two distinct peaks reaches the limit, at most `cap`.

    `points` are pairs of size and peak in bytes, in order. Raises MemoryError if the smallest exceeds the limit.
    """
    first, last = points[0], points[-1]
    if first[1] > limit:
        raise MemoryError(f"a batch of {first[0]} needs {first[1] / 1e9:.3g} GB; {limit / 1e9:.3g} GB are available")
    # The nearest smaller size whose peak is visibly lower.
    grown = [point for point in points[:-1] if last[1] - point[1] >= _VISIBLE_BYTES]
    if not grown:
        return cap
    size, peak = grown[-1]
    slope = (last[1] - peak) / (last[0] - size)
    return max(1, min(cap, int(last[0] + (limit - last[1]) / slope)))
