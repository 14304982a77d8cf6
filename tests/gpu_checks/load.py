"""Work for a GPU, in a process of its own: `python -m tests.gpu_checks.load KIND '{"option": ...}'`.

Says `ready` on its standard output and works until its standard input ends; its last line is JSON. Some kinds end by
themselves. The GPU is chosen by CUDA_VISIBLE_DEVICES.
"""

import json
import os
import select
import sys
import time
from pathlib import Path


def say(value):
    print(value if isinstance(value, str) else json.dumps(value), flush=True)


def ended():
    """Whether the parent has closed our input."""
    return bool(select.select([0], [], [], 0)[0]) and not os.read(0, 1)


def gemm_step(torch, size=8192):
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def memory_step(torch):
    a = torch.ones(2**28, device="cuda", dtype=torch.float32)
    out = torch.empty_like(a)
    return lambda: torch.add(a, 1.0, out=out)


def training_step(torch, distributed=False, batch=8):
    """A small decoder in bf16 with AdamW: 8 layers of width 1024, sequences of 512."""
    layer = torch.nn.TransformerEncoderLayer(
        1024, 16, 4096, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    body = torch.nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 1024), body, torch.nn.Linear(1024, 256)).cuda()
    if distributed:
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 256, (batch, 513), device="cuda")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    return step


STEPS = {"gemm": gemm_step, "memory": memory_step, "training": training_step}


def steady(torch, kind):
    """Work without a pause; the context alone does nothing at all."""
    step = STEPS.get(kind, lambda torch: lambda: time.sleep(0.1))(torch)
    step()
    torch.cuda.synchronize()
    say("ready")
    count = 0
    while not ended():
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        count += 4
    return {"steps": count}


def waves(torch, programme):
    """Square waves of {period, duty, phase, seconds}: bursts of products, timed by the host, their length by events.

    A line after each wave: its edges and bursts on the host's clock, and the duty that the GPU's events show.
    """
    step = gemm_step(torch, 4096)
    for _ in range(50):
        step()
    torch.cuda.synchronize()
    say("ready")
    for wave in programme:
        period, phase = round(wave["period"] * 1e9), wave["phase"] * wave["period"] * 1e9
        on = round(wave["duty"] * period)
        begin = round((time.monotonic_ns() // period + 2) * period + phase)
        bursts, events, start = [], [], begin
        while start < begin + wave["seconds"] * 1e9 and not ended():
            pause = (start - time.monotonic_ns()) / 1e9 - 0.002
            if pause > 0:
                time.sleep(pause)
            while time.monotonic_ns() < start:
                pass
            edge = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            edge[0].record()
            first = time.monotonic_ns()
            while time.monotonic_ns() < start + on:
                step()
                step()
                torch.cuda.synchronize()
            edge[1].record()
            bursts.append((first, time.monotonic_ns()))
            events.append(edge)
            start += period
        torch.cuda.synchronize()
        while (left := start - time.monotonic_ns()) > 0:
            time.sleep(left / 1e9)
        busy = sum(a.elapsed_time(b) for a, b in events) / 1e3
        say({"start_ns": begin, "end_ns": start, "bursts": bursts, "event_duty": busy / ((start - begin) / 1e9)})
    return {}


def perturbation(torch, uuid, segment_seconds, blocks, interval):
    """Times of training segments without and with a reading sidecar, in the order A B B A."""
    from bench.meters.sidecar import Sidecar

    step = training_step(torch)
    for _ in range(20):
        step()
    torch.cuda.synchronize()

    def segment(steps):
        began = time.perf_counter()
        for i in range(steps):
            step()
            if i % 8 == 7:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    steps = max(8, round(segment_seconds / (segment(40) / 40)))
    segment(steps)
    times = []
    trace = Path(os.environ.get("TMPDIR", "/tmp")) / f"gpu_check.{os.getpid()}.jsonl"
    with Sidecar(["nvml", "rapl"], gpus=[uuid], interval=interval) as sidecar:
        try:
            for _ in range(blocks):
                for metered in (False, True, True, False):
                    if metered:
                        sidecar.open(trace)
                    times.append(segment(steps))
                    if metered:
                        sidecar.close()
        finally:
            trace.unlink(missing_ok=True)
        return {"times": times, "steps": steps, "error": sidecar.error, "live": sidecar.live}


def rank(torch, number, file):
    """One of two ranks of a DDP training over gloo, both on one GPU."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=number, world_size=2)
    step = training_step(torch, distributed=True, batch=2)
    step()
    torch.cuda.synchronize()
    say("ready")
    count, stop = 0, torch.zeros(1)
    while not stop.item():
        step()
        count += 1
        stop[0] = float(ended())
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
    torch.cuda.synchronize()
    say({"steps": count})
    os._exit(0)


def main():
    kind, options = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    import torch

    if not torch.cuda.is_available():
        say({"reason": f"torch {torch.__version__} cannot use CUDA here"})
        return 1
    torch.backends.cuda.matmul.allow_tf32 = True
    if kind in ("waves", "perturbation", "rank"):
        say({"waves": waves, "perturbation": perturbation, "rank": rank}[kind](torch, **options))
    else:
        say(steady(torch, kind))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)
