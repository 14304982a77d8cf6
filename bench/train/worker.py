"""The training script of one rank: build, wrap, warm up, measure, write.

Started by torch's elastic agent (bench.run.node), or cold by plain torchrun as `python -P -m bench.train.worker RUN_FOLDER`.
It reads `spec.json` and writes `steps-<rank>.jsonl` and, rank 0, `result.json`; a failure leaves `error-<rank>.json`.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from bench import folder as files
from bench import registry
from bench.files import write_text
from bench.process import die_with_parent
from bench.record import Inference, Measurement, Rank
from bench.schema import RunSpec, Scalar
from bench.strategies import checkpoint
from bench.strategies.graph import compiled
from bench.strategies.precision import Unsupported
from bench.train import inference
from bench.train.batch_size import find_batch, limit_memory
from bench.train.footprint import peak_bytes
from bench.train.probes import (
    communication_shares,
    is_out_of_memory,
    matmul_speeds,
    peak_memory,
    quartiles_apart,
    reset_peak_memory,
)
from bench.train.trainer import Clock, InvalidResult, Trainer, Window, build, synchronize, warm_up

_KEPT: list[Any] = []
"""What must outlive a run. Destroying a gloo process group joins its thread while holding the GIL, and that thread may be
waiting for the GIL to let go of its last tensor: one run in about ten never ended. So it is kept until the process ends,
which it does without destructors: forked ranks by nature, cold ones by os._exit.
"""


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


def _build(spec: RunSpec, device: torch.device, needed: Path | None, clock: Clock, now: int) -> Trainer:
    """Build the training, with the largest batch that fits where that is asked for."""
    limit_memory(spec, device)
    how: dict[str, Scalar] = {}
    if spec.batch_size_per_device == "max":
        size, how = find_batch(spec, device, needed)
        spec = spec.changed(batch_size_per_device=size)
        now = clock.phase("find_batch", now)
    trainer = build(spec, device, needed)
    trainer.parts.notes |= how
    clock.phase("build", now)
    return trainer


def run(spec: RunSpec, folder: Path, rank: int, local_rank: int) -> None:
    """Do one run on this rank, from nothing to its files."""
    device = _connect(spec, rank, local_rank)
    synchronize(device)  # what the first collective sets up belongs to the start
    clock = Clock(device)
    now = clock.phase("start", int(os.environ["WATTBENCH_STARTED_NS"]))
    registry.preload(spec.workload)  # done already in a warm run
    before = reset_peak_memory(device)
    needed = None if spec.needs is None else files.NEEDS.read(folder).folder
    trainer = _build(spec, device, needed, clock, now)
    now = clock.phases[-1].end_ns
    step_seconds = warm_up(trainer)
    now = clock.phase("warmup", now)
    dtype = trainer.parts.precision.matmul_dtype
    speeds = [matmul_speeds(device, dtype)]  # as warm as after the window
    if device.type == "cuda":
        trainer.step()  # the probe gave memory back, which a step would first have to ask for again
        synchronize(device)
    trainer.probed_ns = clock.phase("probe", now) - now
    reset_peak_memory(device)
    warmup_steps = len(trainer.losses)
    cpu_seconds = time.process_time()
    window = Window(trainer, clock, step_seconds)
    window.measure()
    cpu_seconds, peak = time.process_time() - cpu_seconds, peak_memory(device, before)
    data_wait, trained = trainer.data_wait_ns / 1e9, len(trainer.losses)
    losses = trainer.mean_loss(0), trainer.mean_loss(-1)
    if not all(math.isfinite(loss) for loss in losses):
        raise InvalidResult(f"the loss went from {losses[0]} to {losses[1]} in {trained} steps")
    served = _finish(trainer, clock, folder)
    now = time.monotonic_ns()
    speeds.append(matmul_speeds(device, dtype))
    shares = communication_shares(trainer)
    clock.phase("probe", now)
    mine = Rank(
        rank=rank,
        device=device_id(device),
        window_seconds=window.seconds,
        forward_seconds_median=median(clock.forward_seconds()) if trainer.parallel.apart else None,
        data_wait_seconds=data_wait,
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=peak,
        matmul_flops_per_second=[median(probe) for probe in speeds if probe],
        matmul_spread=max((quartiles_apart(probe) for probe in speeds if probe), default=None),
        communication_share=shares.communication if shares else None,
        exposed_communication_share=shares.exposed if shares else None,
        busy_share=shares.busy if shares else None,
    )
    ranks = gather(mine)
    _write_steps(files.STEPS.path(folder, rank), clock, trainer.losses[warmup_steps:trained])
    if rank == 0:
        files.RESULT.write(folder, _result(window, ranks, losses, served))
    dist.barrier()
    if device.type == "cuda":
        dist.destroy_process_group()
    _KEPT.append(trainer)


def _finish(trainer: Trainer, clock: Clock, folder: Path) -> Inference | None:
    """Validate the trained model, save it, and measure the form in which it would be served, as far as that is asked."""
    now = time.monotonic_ns()
    if not trainer.quality or trainer.quality[-1].step != len(trainer.losses):
        trainer.validate()
        now = clock.phase("validation", now)
    if trainer.spec.saves is not None:
        checkpoint.save(trainer.spec, trainer.parallel, folder / files.CHECKPOINT)
        synchronize(trainer.device)
        now = clock.phase("checkpoint", now)
    served = inference.measure(trainer)
    if served is not None:
        clock.phase("inference", now)
    return served


def _result(window: Window, ranks: list[Rank], losses: tuple[float, float], served: Inference | None) -> Measurement:
    trainer, clock = window.trainer, window.clock
    workload = trainer.parts.workload
    samples = window.steps * trainer.samples_per_step
    return Measurement(
        step_seconds=clock.step_seconds(),
        window_seconds=max(rank.window_seconds for rank in ranks),
        steps=window.steps,
        samples=samples,
        tokens=samples * workload.tokens_per_sample if workload.tokens_per_sample else None,
        data_wait_seconds=max(rank.data_wait_seconds or 0 for rank in ranks),
        peak_memory_bytes=[rank.peak_memory_bytes for rank in ranks if rank.peak_memory_bytes is not None],
        batch_size_per_device=trainer.batch_size,
        compile_seconds=trainer.compile_seconds,
        memory_estimated_bytes=peak_bytes(trainer.spec),
        parameters=trainer.parameters,
        trainable_parameters=trainer.trainable_parameters,
        flops_per_sample=workload.flops_per_sample() * trainer.parts.flops_share,
        loss_first=losses[0],
        loss_last=losses[1],
        quality=trainer.quality,
        stopped_by=window.stopped_by,
        inference=served,
        dataset=workload.dataset,
        dataset_digest=workload.dataset_digest,
        ranks=ranks,
        phases=clock.phases,
        notes=_notes(trainer),
    )


def _notes(trainer: Trainer) -> dict[str, Scalar]:
    """Notes of the parts; what had to be compiled after the warm-up made measured steps slow, so it is told."""
    notes = dict(trainer.parts.notes)
    if "compiled_graphs" in notes:
        notes["compiled_after_warmup"] = int(compiled()["compiled_graphs"]) - int(notes["compiled_graphs"])
    return notes


def _write_steps(path: Path, clock: Clock, losses: list[torch.Tensor]) -> None:
    rows = zip(clock.starts, clock.step_seconds(), losses, strict=True)
    lines = [json.dumps({"start_ns": t, "step_seconds": s, "loss": round(float(loss), 6)}) for (t, _), s, loss in rows]
    write_text(path, "\n".join(lines) + "\n")


def classify(error: BaseException) -> files.Kind:
    """Kind of a failure: out_of_memory, unsupported, invalid, peer (another rank went first), failed."""
    text = str(error)
    if is_out_of_memory(error):
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
    stack = files.STACKS.path(folder, rank).open("w")
    _KEPT.append(stack)
    faulthandler.register(signal.SIGUSR1, stack)  # at the time limit a rank writes down where it is
    try:
        spec = files.SPEC.read(folder)
        run(spec, folder, rank, local_rank)
        Path(stack.name).unlink()
    except Exception as error:  # noqa: BLE001  whatever it was, it is written down and the process ends
        traceback.print_exc()
        message = str(error).strip() or type(error).__name__
        failure = files.RankError(kind=classify(error), type=type(error).__name__, message=message[:4000], rank=rank)
        files.write_error(folder, failure)
        sys.stderr.flush()
        os._exit(1)  # other ranks may hang in a collective: no waiting for threads of theirs


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
