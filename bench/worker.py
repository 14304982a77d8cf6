"""The training script of one rank: build, wrap, warm up, measure, write.

Started by torch's elastic agent (bench.node), or cold by plain torchrun as `python -P -m bench.worker RUN_FOLDER`. It reads
`spec.json` and writes `steps-<rank>.jsonl` and, rank 0, `result.json`; a failure leaves `error-<rank>.json`.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist

from bench import registry
from bench.files import write_json, write_text
from bench.process import die_with_parent
from bench.schema import Measurement, Phase, Rank, RunSpec
from bench.strategies.precision import Precision, Unsupported

_KEPT: list[Any] = []
"""What must outlive a run. Destroying a gloo process group joins its thread while holding the GIL, and that thread may be
waiting for the GIL to let go of its last tensor: one run in about ten never ended. So it is kept until the process ends,
which it does without destructors: forked ranks by nature, cold ones by os._exit.
"""


class InvalidResult(Exception):
    """The training ran, but what it computed cannot be right."""


@dataclass
class Clock:
    """Times of one rank: phases of the run, and the steps of the window without any synchronisation in between."""

    device: torch.device
    phases: list[Phase] = field(default_factory=list)
    marks: list[tuple[int, Any]] = field(default_factory=list)
    forwards: list[tuple[int, Any]] = field(default_factory=list)

    def phase(self, name: str, start_ns: int) -> int:
        """Close a phase that began at `start_ns`; return the time now, where the next one begins."""
        now = time.monotonic_ns()
        self.phases.append(Phase(name=name, start_ns=start_ns, end_ns=now))
        return now

    def _now(self) -> tuple[int, Any]:
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return time.monotonic_ns(), event

    def mark(self) -> None:
        """Note the border between two steps: host time, and on a GPU an event that is resolved after the window."""
        self.marks.append(self._now())

    def mark_forward(self) -> None:
        """Note the end of the first forward pass of a step: up to there ranks do not wait for each other."""
        self.forwards.append(self._now())

    def _between(self, pairs: Any) -> list[float]:
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1e3 for (_, a), (_, b) in pairs]
        return [(b - a) / 1e9 for (a, _), (b, _) in pairs]

    def step_seconds(self) -> list[float]:
        """Length of each measured step in seconds."""
        return self._between(zip(self.marks, self.marks[1:], strict=False))

    def forward_seconds(self) -> list[float]:
        """Length of the first forward pass of each measured step, its data included, in seconds."""
        return self._between(zip(self.marks, self.forwards, strict=False))


@dataclass
class Trainer:
    """Everything that one step of the optimizer needs."""

    spec: RunSpec
    device: torch.device
    workload: Any
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    batches: Any
    after_forward: Callable[[], None] = lambda: None
    data_wait_ns: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)

    def step(self) -> None:
        """Train on `gradient_accumulation_steps` micro-batches, then update. Never waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        accumulate = self.spec.gradient_accumulation_steps
        for micro in range(accumulate):
            asked = time.monotonic_ns()
            batch = next(self.batches).to(self.device, non_blocking=True)
            self.data_wait_ns += time.monotonic_ns() - asked
            last = micro == accumulate - 1
            with nullcontext() if last else self.model.no_sync():
                with self.precision.context():
                    loss = self.workload.loss(self.model, batch) / accumulate
                if micro == 0:
                    self.after_forward()
                self.precision.backward(loss)
            total += loss.detach()
        self.precision.step(self.optimizer)
        self.losses.append(total)


def matmul_speeds(device: torch.device, dtype: torch.dtype) -> list[float]:
    """Speeds in FLOP/s of equal square matrix products, for about 0.15 s; empty where they do not fit into memory.

    The greatest is what plain products reach on this device; made before and after the training, they tell whether the
    machine itself changed its speed.
    """
    size = 8192 if device.type == "cuda" else 768
    speeds: list[float] = []
    synchronize(device)
    try:
        a, b = (torch.ones(size, size, device=device, dtype=torch.float32).uniform_(-1, 1).to(dtype) for _ in range(2))
        out = torch.mm(a, b)
        began = time.monotonic()
        while len(speeds) < 3 or time.monotonic() - began < 0.15:
            clock = Clock(device)
            clock.mark()
            torch.mm(a, b, out=out)
            clock.mark()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            speeds += [2 * size**3 / seconds for seconds in clock.step_seconds()]
        del a, b, out
    except RuntimeError as error:
        if classify(error) != "out_of_memory":
            raise
        speeds = []  # no room for the probe: the training goes on without
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return speeds


def build(spec: RunSpec, device: torch.device, precision: Precision) -> Trainer:
    """Build the model with the same random weights on every rank, and wrap it."""
    torch.manual_seed(spec.seed)
    workload = registry.load("workload", spec.workload)(spec.workload_args)
    with device:
        model = workload.build()
    model.train()
    wrapped = registry.load("parallelism", spec.parallelism.name)(model, device, **spec.parallelism.options)
    optimizer = registry.load("optimizer", spec.optimizer.name)(wrapped.parameters(), **spec.optimizer.options)
    batches = workload.batches(spec.batch_size_per_device or 1, seed=spec.seed * 65_537 + dist.get_rank())
    return Trainer(spec, device, workload, wrapped, optimizer, precision, batches)


def agree(value: float, device: torch.device, how: Any = dist.ReduceOp.MAX) -> float:
    """Return the same number on all ranks: their greatest, or what `how` makes of them. Waits for all."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=how)
    return float(shared.item())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work, and until all ranks are here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    agree(0, device)


def warm_up(trainer: Trainer) -> float:
    """Train outside the window for `warmup_steps` and `warmup_seconds`; return the median seconds of its later steps."""
    spec, seconds = trainer.spec, []
    began = time.monotonic_ns()
    while True:
        start = time.monotonic_ns()
        trainer.step()
        synchronize(trainer.device)
        seconds.append((time.monotonic_ns() - start) / 1e9)
        enough = len(seconds) >= spec.warmup_steps and (time.monotonic_ns() - began) / 1e9 >= spec.warmup_seconds
        if agree(0 if enough else 1, trainer.device) == 0:
            later = sorted(seconds[len(seconds) // 2 :])
            return agree(later[len(later) // 2], trainer.device)


def measure(trainer: Trainer, clock: Clock, step_seconds: float) -> tuple[int, int]:
    """Run the measured steps between two edges (synchronise, barrier) and return the edges in monotonic nanoseconds.

    With `measure_seconds` the number of steps comes from the warm-up, the same for all ranks; should that have been too
    few, ranks agree on more at the end of the window, which costs one reduction.
    """
    spec = trainer.spec
    steps = spec.measure_steps or max(1, math.ceil(1.03 * (spec.measure_seconds or 0) / step_seconds))
    trainer.data_wait_ns = 0
    trainer.after_forward = clock.mark_forward
    synchronize(trainer.device)
    start = time.monotonic_ns()
    clock.mark()
    while steps:
        for _ in range(steps):
            trainer.step()
            clock.mark()
        synchronize(trainer.device)
        end = time.monotonic_ns()
        missing = (spec.measure_seconds or 0) - (end - start) / 1e9
        steps = math.ceil(agree(missing, trainer.device) / step_seconds) if spec.measure_seconds else 0
        steps = max(steps, 0)
    return start, end


def reset_peak_memory(device: torch.device) -> int:
    """Start the peak of memory anew; return the bytes that are in use now and are not of the training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set becomes its present size
    except OSError:
        return 0  # not Linux, or a sandbox: then the peak is that of the whole process
    return _memory("RssAnon")


def peak_memory(device: torch.device, before: int) -> int:
    """Greatest memory in bytes since the reset: allocated on the GPU, or what the process itself has grown by.

    The kernel keeps the peak of the whole resident set; pages of files (libraries, which a forked rank maps anew) are
    taken off as they are now.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return max(1, _memory("VmHWM") - _memory("RssFile") - _memory("RssShmem") - before)


def _memory(name: str) -> int:
    """Return a figure of /proc/self/status in bytes; without it the peak of the process, or 0 for its parts."""
    try:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if name == "VmHWM" else 0


def gather(mine: Rank) -> list[Rank]:
    """Return what all ranks say of themselves, by rank."""
    theirs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(theirs, mine.model_dump())
    return [Rank.model_validate(rank) for rank in theirs]


def device_id(device: torch.device) -> str:
    """UUID of the GPU as NVML writes it, or `cpu`."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else "cpu"


def _connect(spec: RunSpec, rank: int, local_rank: int) -> torch.device:
    """Take this rank's device and meet the other ranks."""
    torch.set_num_threads(spec.threads_per_device)
    device = torch.device("cuda", local_rank) if spec.device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if spec.cold:
        dist.init_process_group(backend)
    else:
        store = dist.FileStore(os.environ["WATTBENCH_STORE"], spec.world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=spec.world_size)
    return device


def _quartiles_apart(speeds: list[float]) -> float:
    low, _, high = quantiles(speeds, n=4, method="inclusive")
    return (high - low) / median(speeds)


def run(spec: RunSpec, folder: Path, rank: int, local_rank: int) -> None:
    """Do one run on this rank, from nothing to its files."""
    device = _connect(spec, rank, local_rank)
    synchronize(device)  # what the first collective sets up belongs to the start
    clock = Clock(device)
    now = clock.phase("start", int(os.environ["WATTBENCH_STARTED_NS"]))
    registry.preload(spec.workload)  # done already in a warm run
    precision = registry.load("precision", spec.precision.name)(device, **spec.precision.options)
    before = reset_peak_memory(device)
    trainer = build(spec, device, precision)
    now = clock.phase("build", now)
    step_seconds = warm_up(trainer)
    now = clock.phase("warmup", now)
    speeds = [matmul_speeds(device, precision.compute_dtype)]  # as warm as after the window
    clock.phase("probe", now)
    reset_peak_memory(device)
    warmup_steps = len(trainer.losses)
    cpu_seconds = time.process_time()
    start, end = measure(trainer, clock, step_seconds)
    clock.phases.append(Phase(name="steady", start_ns=start, end_ns=end))
    cpu_seconds, peak = time.process_time() - cpu_seconds, peak_memory(device, before)
    speeds.append(matmul_speeds(device, precision.compute_dtype))
    clock.phase("probe", end)
    ends = trainer.losses[0], trainer.losses[-1]
    losses = [agree(float(loss), device, dist.ReduceOp.SUM) / spec.world_size for loss in ends]
    if not all(math.isfinite(loss) for loss in losses):
        raise InvalidResult(f"the loss went from {losses[0]} to {losses[1]} in {len(trainer.losses)} steps")
    mine = Rank(
        rank=rank,
        device=device_id(device),
        window_seconds=(end - start) / 1e9,
        forward_seconds_median=median(clock.forward_seconds()),
        data_wait_seconds=trainer.data_wait_ns / 1e9,
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=peak,
        matmul_flops_per_second=[median(probe) for probe in speeds if probe],
        matmul_spread=max((_quartiles_apart(probe) for probe in speeds if probe), default=None),
    )
    ranks = gather(mine)
    _write_steps(folder / f"steps-{rank}.jsonl", clock, clock.step_seconds(), trainer.losses[warmup_steps:])
    if rank == 0:
        result = _result(trainer, clock, ranks, losses)
        write_text(folder / "result.json", result.model_dump_json(indent=1) + "\n")
    dist.barrier()
    if device.type == "cuda":
        dist.destroy_process_group()
    _KEPT.append(trainer)


def _result(trainer: Trainer, clock: Clock, ranks: list[Rank], losses: list[float]) -> Measurement:
    model, seconds = trainer.model.module, clock.step_seconds()
    samples = len(seconds) * (trainer.spec.global_batch_size or 1)
    return Measurement(
        step_seconds=seconds,
        window_seconds=max(rank.window_seconds for rank in ranks),
        steps=len(seconds),
        samples=samples,
        tokens=samples * trainer.workload.tokens_per_sample,
        data_wait_seconds=max(rank.data_wait_seconds or 0 for rank in ranks),
        peak_memory_bytes=[rank.peak_memory_bytes for rank in ranks if rank.peak_memory_bytes is not None],
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_sample=trainer.workload.flops_per_sample(model),
        loss_first=losses[0],
        loss_last=losses[1],
        dataset=trainer.workload.dataset,
        dataset_digest=trainer.workload.dataset_digest,
        ranks=ranks,
        phases=clock.phases,
    )


def _write_steps(path: Path, clock: Clock, seconds: list[float], losses: list[torch.Tensor]) -> None:
    rows = zip(clock.marks, seconds, losses, strict=False)
    lines = [json.dumps({"start_ns": t, "step_seconds": s, "loss": round(float(loss), 6)}) for (t, _), s, loss in rows]
    write_text(path, "\n".join(lines) + "\n")


def classify(error: BaseException) -> str:
    """Kind of a failure: out_of_memory, unsupported, invalid, peer (another rank went first), failed."""
    text = str(error)
    no_memory = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in text for word in no_memory):
        return "out_of_memory"
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, InvalidResult):
        return "invalid"
    broken = ("onnection closed by peer", "onnection reset", "Broken pipe", "Socket Timeout", "gloo", "NCCL")
    return "peer" if isinstance(error, RuntimeError) and any(word in text for word in broken) else "failed"


def main(folder_name: str) -> None:
    """Run the rank that the environment of torchrun names. Exits with 1 after a failure, which it has written down."""
    die_with_parent()
    folder = Path(folder_name)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    stack = (folder / f"stack-{rank}.txt").open("w")
    _KEPT.append(stack)
    faulthandler.register(signal.SIGUSR1, stack)  # at the time limit a rank writes down where it is
    try:
        spec = RunSpec.model_validate_json((folder / "spec.json").read_text())
        run(spec, folder, rank, local_rank)
        Path(stack.name).unlink()
    except Exception as error:  # noqa: BLE001  whatever it was, it is written down and the process ends
        traceback.print_exc()
        message = str(error).strip() or type(error).__name__
        failure = {"kind": classify(error), "type": type(error).__name__, "message": message[:4000], "rank": rank}
        write_json(folder / f"error-{rank}.json", failure)
        sys.stderr.flush()
        os._exit(1)  # other ranks may hang in a collective: no waiting for threads of theirs


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
