"""Whether measuring disturbs what is measured: our meter sidecar beside other trackers, on one training.

    python -m tests.benchmarks.observer [--pairs N] [--seconds S] [--no-peers]

Three parts, on a CPU, with a stand-in for NVML (one GPU) and for RAPL where the sidecar can be told of it:

1. CPU time of the sidecar as a share of one core, at its usual pace, after its start is over. Exit code 1 where it is
   more than `LIMIT` for one GPU or for RAPL. It is what the kernel counted for the process and its children.
2. Speed of a training with and without each tracker. A process a contender, all alive, one busy at a time; the windows
   of a block are ABBA (without, with, with, without) in that one process, and the contenders take turns block by block.
   A ratio is that of the geometric means of a block's two pairs, where a slow drift cancels; the interval is Student's t
   on the logarithms of the blocks (`analytics.interval.geometric_mean`), which `ratio`, for independent launches, would
   make too wide. `nothing` is a contender too: what is seen of it is the noise. The CPU time beside the training
   thread is told apart by the kernel, and so is far less noisy than the speed.
3. Time from the start of `bench run` to the first training step, with meters and without, ABBA.

The other trackers have a GPU of the stand-in too, except CodeCarbon, which asks for the program nvidia-smi first.
"""

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev

import psutil

from analytics.interval import Interval, geometric_mean, t_quantile
from bench.figures.metrics import metrics
from bench.meters.meter import INTERVAL
from bench.meters.sidecar import Sidecar
from bench.record import RunRecord
from bench.suites import yaml as yamlfile
from tests.benchmarks.peers import peers_python
from tests.benchmarks.warm_start import phases
from tests.fake_nvml import environment, fake_gpu

LIMIT = 0.005
"""CPU seconds of the sidecar in a second, with one GPU or with RAPL."""
GATE_SECONDS = 20.0
SETTLE_SECONDS = 3.0
JOIN_SECONDS = 20.0
REST_SECONDS = 31.0
"""Two of CodeCarbon's periods of 15 s, the longest of all."""
STARTS = 4
"""Pairs of executions for the time to the first step."""
METERS = ["nvml", "rapl", "codecarbon"]
GATES = [
    ("one GPU", ["nvml"], True),
    ("RAPL", ["rapl"], True),
    ("one GPU and CodeCarbon", ["nvml", "codecarbon"], False),
    ("all three", METERS, False),
]
ORDER = (False, True, True, False)
PEERS = ["codecarbon", "zeus", "carbontracker"]
SUITE = {
    "name": "observer",
    "idle_seconds": 0,  # idle power is waited for on purpose, once an execution
    "defaults": {
        "workload": "decoder_lm",
        "workload_args": {"preset": "tiny"},
        "device_type": "cpu",
        "devices": 1,
        "batch_size_per_device": 2,
        "measure_seconds": 1,
    },
    "matrix": {"cold": [False]},
}


# --- figures


@dataclass(frozen=True)
class Window:
    """A window of training: speed in steps a second, CPU seconds a second beside the training thread."""

    tracked: bool
    speed: float
    other_cpu: float


def speed_ratio(windows: Sequence[Window]) -> Interval:
    """Return speed with / without the tracker, from whole ABBA blocks in the order of time."""
    blocks = [windows[i : i + len(ORDER)] for i in range(0, len(windows), len(ORDER))]
    if not blocks or any(tuple(w.tracked for w in block) != ORDER for block in blocks):
        raise ValueError("wanted one or more whole blocks of ABBA")
    signs = [1 if tracked else -1 for tracked in ORDER]
    logs = [sum(s * math.log(w.speed) for s, w in zip(signs, block, strict=True)) / 2 for block in blocks]
    return geometric_mean([math.exp(value) for value in logs])


def extra_cpu(windows: Sequence[Window]) -> float:
    """Return CPU seconds in a second of training that the tracker adds beside the training thread."""
    return mean(w.other_cpu for w in windows if w.tracked) - mean(w.other_cpu for w in windows if not w.tracked)


def difference(pairs: Sequence[tuple[float, float]], level: float = 0.95) -> tuple[float, float]:
    """Return the mean of (with - without) and half of its interval, by Student's t."""
    values = [a - b for a, b in pairs]
    return mean(values), t_quantile(len(values) - 1, level) * stdev(values) / math.sqrt(len(values))


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
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


# --- the sidecar


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
        while (
            process.starting
            and path.exists()
            and time.monotonic() < deadline
            and '"source":"codecarbon"' not in path.read_text()
        ):
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


# --- training


@dataclass
class Contender:
    """A training process with a tracker in it, or with our sidecar beside it, and what was seen of it."""

    name: str
    process: subprocess.Popen[str]
    folder: Path
    meters: Sequence[str] = ()
    version: str = ""
    windows: list[Window] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    at_rest: float = math.nan

    def say(self, **command: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            said = (self.folder / "stderr").read_text().strip().splitlines()
            raise RuntimeError(f"{self.name} ended: {said[-1] if said else 'without a word'}")
        return json.loads(line)

    def ask(self, **command: object) -> dict:
        self.say(**command)
        return self.hear()

    @contextlib.contextmanager
    def tracking(self) -> Iterator[int | None]:
        """Run the tracker; yields the pid of a process of its own beside the training."""
        if self.meters:
            number = len(self.starts)
            with sidecar(self.meters, self.folder / f"meters-{number}.jsonl") as (process, ready):
                self.starts.append(ready)
                yield process.pid
        else:
            self.starts.append(self.ask(do="start")["seconds"])
            yield None
            self.ask(do="stop")

    def window(self, tracked: bool, seconds: float, beside: int | None = None) -> None:
        """Train for a window, with all that runs below or beside the training counted."""
        before, start = self._others(beside), time.perf_counter()
        found = self.ask(do="train", tracked=tracked, seconds=seconds)
        others = (self._others(beside) - before) / (time.perf_counter() - start)  # the steps before the window included
        cpu = others + found["other_cpu"] / found["seconds"]
        self.windows.append(Window(tracked, found["steps"] / found["seconds"], cpu))
        if tracked:
            self.edges.append(found["edges"])

    def _others(self, beside: int | None) -> float:
        children = psutil.Process(self.process.pid).children()
        return sum(cpu_seconds(pid) for pid in [*(child.pid for child in children), *([beside] if beside else [])])

    def block(self, seconds: float) -> None:
        """Train for a block of windows."""
        self.window(False, seconds)
        with self.tracking() as beside:
            self.window(True, seconds, beside)
            self.window(True, seconds, beside)
        self.window(False, seconds)


@contextlib.contextmanager
def contender(name: str, tracker: str, python: Path, folder: Path, meters: Sequence[str] = ()) -> Iterator[Contender]:
    """Start a training process with a home of its own; it ends with the block."""
    folder = folder / name.replace(" ", "-")
    folder.mkdir()
    variables = {k: v for k, v in os.environ.items() if not k.lower().startswith("codecarbon_")}
    variables |= {"HOME": str(folder), "TMPDIR": str(folder)}
    command = [python, Path(__file__).with_name("training.py"), tracker]
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables, cwd=folder
        )
    found = Contender(name, process, folder, meters)
    try:
        found.version = found.hear()["version"]
        found.block(1.0)  # the first one imports, and is not counted
        found.windows, found.edges = [], []
        yield found
    finally:
        with contextlib.suppress(OSError):
            (process.stdin or log).close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def train(pairs: int, seconds: float, peers: Path | None, folder: Path) -> list[Contender]:
    """Let all contenders train by turns, then rest together."""
    ours = Path(sys.executable)
    wanted = [("nothing", "nothing", ours, []), ("our sidecar", "nothing", ours, METERS)]
    wanted += [(name, name, peers, []) for name in PEERS if peers]
    with contextlib.ExitStack() as stack:
        found = []
        for name, tracker, python, meters in wanted:
            try:
                found.append(stack.enter_context(contender(name, tracker, python, folder, meters)))
            except (RuntimeError, OSError) as error:
                print(f"left out: {error}", flush=True)
        for turn in range(pairs // 2):
            for each in found[turn % len(found) :] + found[: turn % len(found)]:
                try:
                    each.block(seconds)
                except (RuntimeError, OSError) as error:
                    print(f"left out: {error}", flush=True)
                    found.remove(each)
        resting = [each for each in found if each.name in PEERS]
        for each in resting:
            each.ask(do="start")
            each.say(do="rest", tracked=True, seconds=REST_SECONDS)
        before = [cpu_seconds(each.process.pid) for each in resting]
        for each, cpu in zip(resting, before, strict=True):
            seconds = each.hear()["seconds"]
            each.at_rest = (cpu_seconds(each.process.pid) - cpu) / seconds
    return found


# --- first step


def first_step(meters: bool, folder: Path) -> tuple[float, float]:
    """Return seconds from the start of `bench run` to its first training step, and those of the run's own start."""
    folder.mkdir()
    suite = SUITE if meters else SUITE | {"defaults": SUITE["defaults"] | {"meters": []}}
    (folder / "suite.yaml").write_text(yamlfile.write(suite))
    command = [sys.executable, "-P", "-c", "from bench.cli import main; main()", "run", "suite.yaml"]
    start = time.monotonic_ns()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (path,) = folder.glob("runs/*/*/*/record.json")
    record = RunRecord.model_validate_json(path.read_text())
    assert "samples_per_second" in metrics(record)
    named = {phase.name: phase for phase in phases(record)}
    begin = named["start"]
    return (named["warmup"].start_ns - start) / 1e9, (begin.end_ns - begin.start_ns) / 1e9


# --- what is printed


def print_gate(shares: Sequence[Share]) -> list[str]:
    rows = []
    for s in shares:
        judged = ("missed" if missed([s]) else "kept") if s.gated else ""
        if not (s.absent or s.error):
            rows.append((s.name, f"{s.cpu:.3%}", f"{s.ready:.2f} s", judged))
    pace = f"reading every {INTERVAL * 1000:.0f} ms"
    print(f"\nThe sidecar, {GATE_SECONDS:.0f} s each, {pace}: CPU of one core (limit {LIMIT:.1%})")
    print(table(("meters", "CPU", "start", "gate"), rows))
    by_name = {s.name: s for s in shares if not (s.absent or s.error)}
    if "one GPU" in by_name and "one GPU and CodeCarbon" in by_name:
        print(f"CodeCarbon's part: {by_name['one GPU and CodeCarbon'].cpu - by_name['one GPU'].cpu:.3%}")
    for s in shares:
        if s.absent or s.error:
            print(f"{s.name}: not measured, {s.absent or s.error}")
    return missed(shares)


def print_training(found: Sequence[Contender], pairs: int, seconds: float) -> None:
    rows = []
    for each in found:
        speed = speed_ratio(each.windows)
        interval = "" if speed.low is None else f"{speed.low:.4f} to {speed.high:.4f}"
        rest = "" if math.isnan(each.at_rest) else f"{each.at_rest:.3%}"
        start, edges = f"{each.starts[0]:.2f} s", f"{1e3 * median(each.edges):.2f} ms"
        cpu = f"{extra_cpu(each.windows):.3%}"
        rows.append((f"{each.name} {each.version}", f"{speed.value:.4f}", interval, cpu, rest, start, edges))
    print(f"\nTraining in one thread, {pairs} pairs of windows of {seconds:g} s each, with / without the tracker")
    print(table(("", "speed", "95 % interval", "more CPU", "at rest", "start", "a window"), rows))
    print(
        "more CPU: of one core, beside the training thread; at rest: the same, where nothing trains;\n"
        "start: until the tracker runs, the first time; a window: the tracker's calls before and after it"
    )
    for each in found:
        print(verdict(each.name, speed_ratio(each.windows)))


def print_starts(pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    print(f"\nFrom the start of `bench run` to the first training step, {len(pairs)} pairs of executions")
    rows = []
    for i, name in enumerate(("to the first step", "the run's own start")):
        with_meters, without = [a[i] for a, _ in pairs], [b[i] for _, b in pairs]
        more, half = difference(list(zip(with_meters, without, strict=True)))
        rows.append(
            (name, f"{median(with_meters):.2f} s", f"{median(without):.2f} s", f"{more:+.2f} s", f"± {half:.2f} s")
        )
    print(table(("", "meters", "none", "difference", "95 % interval"), rows))


def even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError("ABBA needs an even number of pairs, from 2")
    return number


def main() -> int:
    """Measure all and print it; return 1 if the gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.observer", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=even, default=12, help="pairs of windows a contender, an even number")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a window")
    parser.add_argument("--no-peers", action="store_true", help="leave other trackers out")
    options = parser.parse_args()
    peers = None if options.no_peers else peers_python()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.update(environment(fake_gpu()))
        os.environ["WATTBENCH_POWERCAP"] = str(fake_powercap(folder / "powercap"))
        failures = print_gate([share(name, meters, gated, folder) for name, meters, gated in GATES])
        found = train(options.pairs, options.seconds, peers, folder)
        print_training(found, options.pairs, options.seconds)
        runs = [first_step(i % 4 in (0, 3), folder / f"run-{i}") for i in range(2 * STARTS)]
        print_starts(
            [(a, b) if i % 2 == 0 else (b, a) for i, (a, b) in enumerate(zip(runs[::2], runs[1::2], strict=True))]
        )
    print()
    print(
        "\n".join(f"missed: {failure}" for failure in failures)
        or f"kept: the sidecar uses at most {LIMIT:.1%} of a core"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
