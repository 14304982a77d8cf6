"""Probes of a rank outside the window: speed of its device, memory, and share of communication."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.train.trainer import Clock, Trainer, synchronize, wait

_COMMUNICATION = ("gloo:", "nccl:", "nccldevkernel", "ncclkernel", "c10d::", "_c10d_functional::", "record_param_comms")
PROFILED_STEPS = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out."""
    no_memory = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "miopenStatusAllocFailed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in no_memory)


def matmul_speeds(device: torch.device, dtype: torch.dtype) -> list[float]:
    """Speeds in FLOP/s of equal square matrix products, for about 0.15 s; empty where they do not fit into memory.

    The maximum is the speed that plain products reach on this device. Probes before and after the training show whether
    the machine itself changed its speed.
    """
    size = 8192 if device.type == "cuda" else 768
    speeds: list[float] = []
    synchronize(device)
    try:
        a, b = (torch.ones(size, size, device=device, dtype=torch.float32).uniform_(-1, 1).to(dtype) for _ in range(2))
        multiply = _product(a, b)
        multiply()
        began = time.monotonic()
        while len(speeds) < 3 or time.monotonic() - began < 0.15:
            clock = Clock(device)
            clock.begin()
            multiply()
            clock.mark()
            wait(device)
            speeds += [2 * size**3 / seconds for seconds in clock.step_seconds()]
        del a, b, multiply
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        speeds = []  # no room for the probe: the training continues without it
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return speeds


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    """Return a function that multiplies two matrices into allocated memory; 8-bit floats give bfloat16."""
    if a.dtype not in (torch.float8_e4m3fn, torch.float8_e4m3fnuz):
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)
    out, one = torch.empty_like(a, dtype=torch.bfloat16), torch.ones((), device=a.device)
    return lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True, out=out)


def quartiles_apart(speeds: list[float]) -> float:
    """Return the interquartile range divided by the median."""
    low, _, high = quantiles(speeds, n=4, method="inclusive")
    return (high - low) / median(speeds)


def reset_peak_memory(device: torch.device) -> int:
    """Reset the peak of memory; return the bytes in use now that do not belong to the training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident set to its current size
    except OSError:
        return 0  # not Linux, or a sandbox: the peak is then that of the whole process
    return _memory("RssAnon")


def peak_memory(device: torch.device, before: int) -> int:
    """Return the peak memory in bytes since the reset: allocated on the GPU, or growth of the process on a CPU.

    The kernel reports the peak of the whole resident set. File pages (libraries, which a forked rank maps again) are
    subtracted at their current size.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return max(1, _memory("VmHWM") - _memory("RssFile") - _memory("RssShmem") - before)


def _memory(name: str) -> int:
    """Return a field of /proc/self/status in bytes; without that file the peak of the process, or 0 for other fields."""
    try:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if name == "VmHWM" else 0


class Shares(NamedTuple):
    """Shares of the time of the profiled steps: see `bench.record.Rank`."""

    communication_share: float
    exposed_communication_share: float
    busy_share: float


Span = tuple[float, float]


def union(intervals: Iterable[Span]) -> list[Span]:
    """Merge overlapping intervals; the result is sorted."""
    out: list[Span] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _length(intervals: Iterable[Span]) -> float:
    return sum(end - start for start, end in union(intervals))


def communication_shares(trainer: Trainer) -> Shares | None:
    """Profile a few more training steps; None for one rank. All ranks call it.

    On a GPU, NCCL kernels count as communication and all others as computation. On a CPU, communication is the work of
    gloo's threads (sends and receives from start to end); computation is this rank's operations, less the time in which
    they start a collective or wait for one. Gloo implements reduce-scatter by all-reduce.
    """
    if torch.distributed.get_world_size() < 2:
        return None
    gpu = trainer.device.type == "cuda"
    synchronize(trainer.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        began = time.monotonic_ns()
        for _ in range(PROFILED_STEPS):
            trainer.step()
        wait(trainer.device)
        ended = time.monotonic_ns()
    synchronize(trainer.device)
    talking: list[Span] = []
    computing: list[Span] = []
    calls: list[Span] = []
    for event in _raw_events(profiler):
        name, span = event.name().lower(), (event.start_ns() / 1e3, event.end_ns() / 1e3)
        # Annotations span GPU kernels too; those of FSDP and DDP would hide the waiting inside them.
        if gpu != (event.device_type() == DeviceType.CUDA) or (gpu and event.is_user_annotation()):
            continue
        if any(word in name for word in _COMMUNICATION):
            # On a CPU the asynchronous event is the collective itself. The others are calls that start it or wait for it,
            # some of them inside operations on sharded tensors.
            (talking if gpu or name.startswith("gloo:") else calls).append(span)
        elif gpu or name.startswith("aten::"):
            computing.append(span)
    total = (ended - began) / 1e3
    return shares(talking, computing, calls, total)


def _raw_events(profiler: Any) -> Iterable[Any]:
    """Return the raw events of Kineto: `profiler.events()` builds a tree of them first, which took 0.6 s of each run."""
    events = profiler.profiler.kineto_results.events()
    return (event for event in events if not getattr(event, "is_hidden_event", bool)())


def shares(talk: list[Span], compute: list[Span], calls: list[Span], total: float) -> Shares:
    """Return the shares of `total` with communication, with communication alone, and with computation outside `calls`."""
    computed = _length(compute + calls) - _length(calls)
    # Communication together with computation that is in no call: by inclusion and exclusion.
    both = computed - _length(talk + compute + calls) + _length(talk + calls)
    return Shares(_length(talk) / total, (_length(talk) - both) / total, computed / total)
