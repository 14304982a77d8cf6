"""The training script of one rank: build, wrap, warm up, measure, write.

Forked by the agent of a run (bench.run.node), or cold by plain torchrun as `python -P -m bench.train.worker RUN_FOLDER`. It
reads `spec.json` and writes `steps-<rank>.jsonl` and, rank 0, `result.json`; a failure leaves `error-<rank>.json`.
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
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist

from bench import folder as files
from bench import registry
from bench.files import write_text
from bench.process import began_ns, die_with_parent
from bench.record import RESTART, Inference, Measurement, Phase, Rank
from bench.schema import RunSpec, Scalar
from bench.strategies import checkpoint
from bench.strategies.graph import compiled
from bench.strategies.optimizer import allocate_state
from bench.strategies.parts import Unsupported
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

MEET_SECONDS = 60.0
"""How long ranks of several nodes wait for each other at the start."""
_KEPT: list[Any] = []
"""Objects that must outlive a run. Destroying a gloo process group joins its thread while holding the GIL, and that thread
may be waiting for the GIL to release its last tensor: about one run in ten never ended. So the group is kept until the
process ends, which happens without destructors: forked ranks never run them, cold ranks leave by os._exit.
"""


def gather(mine: Rank) -> list[Rank]:
    """Return the reports of all ranks, ordered by rank."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine.model_dump())
    return [Rank.model_validate(rank) for rank in ranks]


def device_id(device: torch.device) -> str:
    """UUID of the GPU as its meter writes it, or `cpu`.

    The 16 bytes of HIP are the letters of a number in hexadecimal, which torch writes as if they were a UUID.
    """
    if device.type != "cuda":
        return "cpu"
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return f"GPU-{bytes.fromhex(uuid.replace('-', '')).decode() if torch.version.hip else uuid}"


def _connect(spec: RunSpec, rank: int, local_rank: int) -> torch.device:
    """Select this rank's device and join the process group."""
    torch.set_num_threads(spec.threads_per_device)
    device = torch.device("cuda", local_rank) if spec.device_type == "gpu" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"  # RCCL has this name too
    if spec.cold:
        dist.init_process_group(backend)
    else:
        store = _store(spec, rank)
        dist.init_process_group(backend, store=store, rank=rank, world_size=spec.world_size)
        if spec.num_nodes > 1:
            store.set_timeout(timedelta(seconds=spec.timeout_seconds))
    return device


def _store(spec: RunSpec, rank: int) -> dist.Store:
    """Return where the ranks meet: in a file on one node, at rank 0 on several, whose node has opened the socket."""
    where = os.environ["WATTBENCH_STORE"]
    if spec.num_nodes == 1:
        return dist.FileStore(where, spec.world_size)
    host, port, listener = json.loads(where)
    how: dict[str, Any] = {"timeout": timedelta(seconds=MEET_SECONDS), "wait_for_workers": False}
    if rank == 0:
        return dist.TCPStore(host, port, spec.world_size, is_master=True, master_listen_fd=listener, **how)
    return dist.TCPStore(host, port, spec.world_size, is_master=False, **how)


def _build(spec: RunSpec, device: torch.device, needed: Path | None, clock: Clock, now: int) -> Trainer:
    """Build the training; with `batch_size_per_device: max` find the largest batch first."""
    limit_memory(spec.memory_limit_bytes, device)
    how: dict[str, Scalar] = {}
    if spec.batch_size_per_device == "max":
        size, how = find_batch(spec, device, needed)
        spec = spec.changed(batch_size_per_device=size)
        now = clock.phase("find_batch", now)
    trainer = build(spec, device, needed)
    if how and device.type == "cuda":
        allocate_state(trainer.optimizer)
    trainer.parts.notes |= how
    clock.phase("build", now)
    return trainer


def _restarts() -> int:
    """Return how often the ranks were started again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def run(spec: RunSpec, folder: Path, rank: int, local_rank: int) -> None:
    """Execute one run on this rank: set up, train, measure, write the files.

    What ranks did that were lost before this process began is the phase `restart`.
    """
    device = _connect(spec, rank, local_rank)
    synchronize(device)  # connections that the first collective opens belong to the start
    clock = Clock(device)
    now = int(os.environ["WATTBENCH_STARTED_NS"])
    if _restarts():
        clock.phases.append(Phase(name=RESTART, start_ns=now, end_ns=began_ns()))
        now = clock.phases[-1].end_ns
    now = clock.phase("start", now)
    registry.preload(spec.workload)  # a no-op in a warm run
    before = reset_peak_memory(device)
    needed = None if spec.needs is None else files.NEEDS.read(folder).folder
    trainer = _build(spec, device, needed, clock, now)
    now = clock.phases[-1].end_ns
    step_seconds = warm_up(trainer)
    now = clock.phase("warmup", now)
    dtype = trainer.parts.precision.matmul_dtype
    speeds = [matmul_speeds(device, dtype)]  # as warm as after the window
    if device.type == "cuda":
        trainer.step()  # the probe emptied the cache of the allocator: one step fills it again
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
    medians = trainer.median_losses()
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
        **(shares._asdict() if shares else {}),
    )
    ranks = gather(mine)
    _write_steps(files.STEPS.path(folder, rank), clock, trainer.losses[warmup_steps:trained])
    if spec.num_nodes > 1 and local_rank == 0:
        files.TIMELINE.write(folder, _timeline(trainer, clock, served))
    if rank == 0:
        files.RESULT.write(folder, _result(window, ranks, losses, medians, served, folder))
    dist.barrier()
    if device.type == "cuda":
        dist.destroy_process_group()
    _KEPT.append(trainer)


def _timeline(trainer: Trainer, clock: Clock, served: Inference | None) -> files.Timeline:
    """Return the times of this rank, by which the energy of its node is read."""
    inferred = None
    if served is not None and served.start_ns is not None and served.end_ns is not None:
        inferred = (served.start_ns, served.end_ns)
    return files.Timeline(phases=clock.phases, read_ns=[point.read_ns for point in trainer.quality], inference=inferred)


def _finish(trainer: Trainer, clock: Clock, folder: Path) -> Inference | None:
    """Validate the trained model, save it if requested, and measure the form in which it would be served."""
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


def _result(
    window: Window,
    ranks: list[Rank],
    losses: tuple[float, float],
    medians: tuple[float, float],
    served: Inference | None,
    folder: Path,
) -> Measurement:
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
        memory_estimated_bytes=_estimated_bytes(trainer.spec, folder.parent),
        parameters=trainer.parameters,
        trainable_parameters=trainer.trainable_parameters,
        flops_per_sample=workload.flops_per_sample() * trainer.parts.flops_share,
        loss_first=losses[0],
        loss_last=losses[1],
        loss_medians=medians,
        quality=trainer.quality,
        stopped_by=window.stopped_by,
        restarts=_restarts(),
        step_flags=["restarted"] * bool(_restarts()),
        inference=served,
        dataset=workload.dataset,
        dataset_digest=workload.dataset_digest,
        ranks=ranks,
        phases=clock.phases,
        notes=_notes(trainer),
    )


def _estimated_bytes(spec: RunSpec, execution: Path) -> int | None:
    """Return the estimated peak memory of a rank; repeats read it from a file, as computing it takes half a second."""
    footprints = files.FOOTPRINTS.find(execution) or {}
    if spec.config_id not in footprints:
        footprints[spec.config_id] = peak_bytes(spec)
        with suppress(OSError):  # a cache: losing it must not fail the run
            files.FOOTPRINTS.write(execution, footprints)
    return footprints[spec.config_id]


def _notes(trainer: Trainer) -> dict[str, Scalar]:
    """Return the notes of the parts. Graphs compiled after the warm-up slowed measured steps, so their number is noted."""
    notes = dict(trainer.parts.notes)
    notes["processors"] = len(psutil.Process().cpu_affinity()) if psutil.LINUX else psutil.cpu_count() or 1
    if dist.get_backend() == "nccl":
        notes["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if "compiled_graphs" in notes:
        notes["compiled_after_warmup"] = int(compiled()["compiled_graphs"]) - int(notes["compiled_graphs"])
    return notes


def _write_steps(path: Path, clock: Clock, losses: list[torch.Tensor]) -> None:
    rows = zip(clock.starts, clock.step_seconds(), losses, strict=True)
    lines = [json.dumps({"start_ns": t, "step_seconds": s, "loss": round(float(loss), 6)}) for (t, _), s, loss in rows]
    write_text(path, "\n".join(lines) + "\n")


def classify(error: BaseException) -> files.ErrorKind:
    """Return the kind of a failure: out_of_memory, unsupported, invalid, peer (another rank failed first) or failed."""
    text = str(error)
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, Unsupported | ImportError):  # a package that is installed, but broken
        return "unsupported"
    if isinstance(error, InvalidResult):
        return "invalid"
    broken = ("onnection closed by peer", "onnection reset", "Broken pipe", "Socket Timeout", "gloo", "NCCL")
    return "peer" if isinstance(error, RuntimeError) and any(word in text for word in broken) else "failed"


def main(folder_name: str) -> None:
    """Run the rank that torchrun's environment variables name. Exits with 1 after a failure, which it has recorded."""
    die_with_parent()
    folder = Path(folder_name)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    stack = files.STACKS.path(folder, rank).open("w")
    _KEPT.append(stack)
    files.ERRORS.path(folder, rank).unlink(missing_ok=True)  # of a rank before a restart
    faulthandler.register(signal.SIGUSR1, stack)  # at the time limit a rank dumps its stack
    if processors := json.loads(os.environ.get("WATTBENCH_PROCESSORS", "[]")):
        psutil.Process().cpu_affinity(processors)  # torchrun binds cold ranks to some of them; warm ones are not bound
    try:
        spec = files.SPEC.read(folder)
        run(spec, folder, rank, local_rank)
        Path(stack.name).unlink()
    except Exception as error:  # noqa: BLE001  every failure is recorded, then the process ends
        traceback.print_exc()
        message = str(error).strip() or type(error).__name__
        failure = files.RankError(kind=classify(error), type=type(error).__name__, message=message[:4000], rank=rank)
        files.write_error(folder, failure)
        sys.stderr.flush()
        os._exit(1)  # other ranks may hang in a collective: do not join its threads


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
