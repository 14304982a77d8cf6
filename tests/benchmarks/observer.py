"""Whether measuring disturbs what is measured: the meter sidecar by itself, and beside a training.

    python -m tests.benchmarks.observer [--blocks N] [--seconds S]

On a CPU, with a stand-in for NVML (one GPU) and for RAPL:

1. CPU time of the sidecar as a share of one core, at its usual pace, after its start is over. Exit code 1 where it is
   more than `LIMIT` for one GPU or for RAPL. It is what the kernel counted for the process and its children.
2. Speed of a training with and without the sidecar, in blocks ABBA (without, with, with, without). A ratio is that of the
   geometric means of a block's two pairs, where a slow drift cancels; the interval is Student's t on the logarithms of
   the blocks. Blocks with nothing at all in the place of the sidecar alternate with them: what they show is the noise.
   The CPU time beside the training thread is told apart by the kernel, and so is far less noisy than the speed.
"""

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

from analytics.interval import Interval, geometric_mean
from bench.meters.meter import INTERVAL
from bench.meters.sidecar import Sidecar
from tests.fake_nvml import environment, fake_gpu

LIMIT = 0.005
"""CPU seconds of the sidecar in a second, with one GPU or with RAPL."""
GATE_SECONDS, SETTLE_SECONDS, JOIN_SECONDS, WARM_SECONDS = 20.0, 3.0, 20.0, 0.3
METERS = ["nvml", "rapl", "codecarbon"]
GATES = [
    ("one GPU", ["nvml"], True),
    ("RAPL", ["rapl"], True),
    ("one GPU and CodeCarbon", ["nvml", "codecarbon"], False),
    ("all three", METERS, False),
]
ORDER = (False, True, True, False)


@dataclass(frozen=True)
class Window:
    """A window of training: speed in steps a second, CPU seconds a second beside the training thread."""

    tracked: bool
    speed: float
    other_cpu: float


def speed_ratio(windows: Sequence[Window]) -> Interval:
    """Return speed with / without the sidecar, from whole ABBA blocks in the order of time."""
    blocks = [windows[i : i + len(ORDER)] for i in range(0, len(windows), len(ORDER))]
    if not blocks or any(tuple(w.tracked for w in block) != ORDER for block in blocks):
        raise ValueError("wanted one or more whole blocks of ABBA")
    signs = [1 if tracked else -1 for tracked in ORDER]
    logs = [sum(s * math.log(w.speed) for s, w in zip(signs, block, strict=True)) / 2 for block in blocks]
    return geometric_mean([math.exp(value) for value in logs])


def extra_cpu(windows: Sequence[Window]) -> float:
    """Return CPU seconds in a second of training that the sidecar adds beside the training thread."""
    return mean(w.other_cpu for w in windows if w.tracked) - mean(w.other_cpu for w in windows if not w.tracked)


@dataclass(frozen=True)
class Share:
    """What a sidecar costs: CPU seconds in a second, seconds from start to ready.

    `absent` says why it cannot be known here, `error` what went wrong: that misses the gate.
    """

    name: str
    gated: bool
    cpu: float = math.nan
    ready: float = math.nan
    absent: str = ""
    error: str = ""


def missed(shares: Sequence[Share], limit: float = LIMIT) -> list[str]:
    """Return why the gate is missed: what costs too much, what went wrong, or that nothing was measured."""
    judged = [share for share in shares if share.gated and not share.absent]
    if not judged:
        return ["nothing was measured"]
    dear = [f"{s.name}: {s.cpu:.2%} of a core, limit {limit:.1%}" for s in judged if not (s.error or s.cpu <= limit)]
    return [f"{s.name}: {s.error}" for s in judged if s.error] + dear


def verdict(name: str, speed: Interval) -> str:
    """Return one line: what the interval says, and what it excludes."""
    if speed.low is None or speed.high is None:
        return f"{name}: one block has no interval, nothing can be said"
    if speed.high < 1:
        return f"{name}: slows the training by {1 - speed.high:.2%} to {1 - speed.low:.2%}"
    if speed.low > 1:
        return f"{name}: no slowdown; faster by {speed.low - 1:.2%} or more, which is this machine's noise"
    return f"{name}: no slowdown seen, one of more than {1 - speed.low:.2%} is excluded"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain table: the first column to the left, the others to the right."""
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    justified = [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(map("  ".join, justified))


def cpu_seconds(pid: int | None) -> float:
    """Return the CPU time of a process and all below it: of live ones in ns by their CPU clocks, else as psutil has it."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
                try:
                    total += time.clock_gettime(~each.pid << 3 | 2)  # the clock that clock_getcpuclockid(3) names
                except OSError:
                    total += times.user + times.system
    return total


def fake_powercap(folder: Path) -> Path:
    """Make a powercap tree of one package and its DRAM."""
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "dram")):
        (folder / zone).mkdir(parents=True)
        for file, text in (("name", name), ("energy_uj", "123456789"), ("max_energy_range_uj", "262143328850")):
            (folder / zone / file).write_text(f"{text}\n")
    return folder


@contextlib.contextmanager
def sidecar(meters: Sequence[str], path: Path) -> Iterator[tuple[Sidecar, float]]:
    """Start a sidecar that writes to `path`; yields it, and the seconds that its start took, when all have joined."""
    start = time.perf_counter()
    with Sidecar(meters) as process:
        ready = time.perf_counter() - start
        process.open(path)
        deadline = time.monotonic() + JOIN_SECONDS
        while process.starting and path.exists() and time.monotonic() < deadline:
            if '"source":"codecarbon"' in path.read_text():
                break
            time.sleep(0.1)
        yield process, ready


def share(name: str, meters: Sequence[str], gated: bool, folder: Path) -> Share:
    """Measure a sidecar at work beside nothing else."""
    with sidecar(meters, folder / f"{name}.jsonl") as (process, ready):
        absent = [f"{meter}: {why}" for meter, why in process.absent.items()]
        if process.error or absent:
            here = not process.error and set(process.absent) == {"rapl"}  # a GPU is there: the stand-in's
            why = process.error or "; ".join(absent)
            return Share(name, gated, absent=why) if here else Share(name, gated, error=why)
        time.sleep(SETTLE_SECONDS)
        before, start = cpu_seconds(process.pid), time.perf_counter()
        time.sleep(GATE_SECONDS)
        return Share(name, gated, (cpu_seconds(process.pid) - before) / (time.perf_counter() - start), ready)


def make_step() -> Callable[[], None]:
    """Return a function that trains a small transformer by one step, in one thread."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Embedding(256, 64), layer, nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(256, (8, 33))

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def window(step: Callable[[], None], seconds: float, tracked: bool, beside: int | None = None) -> Window:
    """Train for so long, after some steps that are not counted; `beside`: the sidecar, whose CPU time counts too."""
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_SECONDS:
        step()

    def other() -> float:
        own = time.process_time() - time.thread_time()
        return own + (cpu_seconds(beside) if beside else 0.0)

    steps, before, start = 0, other(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        step()
        steps += 1
    return Window(tracked, steps / (now - start), (other() - before) / (now - start))


def train(blocks: int, seconds: float, folder: Path) -> dict[str, list[Window]]:
    """Train in blocks, by turns with nothing and with the sidecar."""
    step = make_step()
    found: dict[str, list[Window]] = {"nothing": [], "the sidecar": []}
    window(step, 1.0, False)
    for block in range(blocks):
        for name, windows in found.items():
            windows.append(window(step, seconds, False))
            with contextlib.ExitStack() as stack:
                beside = None
                if name == "the sidecar":
                    beside = stack.enter_context(sidecar(METERS, folder / f"meters-{block}.jsonl"))[0].pid
                windows += [window(step, seconds, True, beside) for _ in range(2)]
            windows.append(window(step, seconds, False))
    return found


def print_gate(shares: Sequence[Share]) -> list[str]:
    rows = []
    for s in shares:
        if s.absent or s.error:
            print(f"{s.name}: not measured, {s.absent or s.error}")
        else:
            judged = ("missed" if missed([s]) else "kept") if s.gated else ""
            rows.append((s.name, f"{s.cpu:.3%}", f"{s.ready:.2f} s", judged))
    pace = f"reading every {INTERVAL * 1000:.0f} ms"
    print(f"The sidecar, {GATE_SECONDS:.0f} s each, {pace}: CPU of one core (limit {LIMIT:.1%})")
    print(table(("meters", "CPU", "start", "gate"), rows))
    return missed(shares)


def print_training(found: dict[str, list[Window]]) -> None:
    print("\nTraining in one thread, with / without; more CPU: of one core, beside the training thread")
    for name, windows in found.items():
        print(f"{verdict(name, speed_ratio(windows))}; more CPU: {extra_cpu(windows):.3%}")


def main() -> int:
    """Measure all and print it; return 1 if the gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.observer", description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=6, help="blocks of four windows, with and without")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a window")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(environment(fake_gpu()))
        os.environ["WATTBENCH_POWERCAP"] = str(fake_powercap(folder / "powercap"))
        failures = print_gate([share(name, meters, gated, folder) for name, meters, gated in GATES])
        print_training(train(options.blocks, options.seconds, folder))
    print("\n".join(f"missed: {failure}" for failure in failures) or f"kept: at most {LIMIT:.1%} of a core")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
