"""The idea of wattbench on one page: suite -> fork -> window -> joules -> record -> law.

Run it with `python docs/mini.py`. Each section is named like the room of the package that does the same for real.
Processes and training are real. The device is simulated: its speed and power are stated under `machine`, so the answer
can be checked against them and is the same on every computer.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a "device" is one process with one thread
import json
import math
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np

# --- bench/suites: what is to be run. Every value of one axis is combined with every value of the other.
SUITE = {"matrix": {"size": [32, 64], "devices": [1, 2]}, "repeats": 3, "warmup_steps": 3, "measure_steps": 8}


def expand(suite):
    """Multiply a suite out into runs. The order changes direction, so a slow minute hits no configuration alone."""
    steps = {name: suite[name] for name in ("warmup_steps", "measure_steps")}
    cells = [{"size": s, "devices": d, **steps} for s in suite["matrix"]["size"] for d in suite["matrix"]["devices"]]
    return [cell | {"repeat": r} for r in range(suite["repeats"]) for cell in (cells[::-1] if r % 2 else cells)]


# --- bench/machine: what runs here. A simulated device has a speed, a slow start and a power that rises as it warms.
SPEED, NOISE, WARMUP_FACTOR = 2e6, 0.01, 3.0  # FLOP/s of one device; spread between runs; first steps are slower
WATTS, WATTS_PER_SECOND, METER_SECONDS = 200.0, 5.0, 0.1  # power at the start; its rise; time between two readings
BATCH = 64  # samples per device and step


def flop(spec):
    """Return the work of one step on one device: two matrix products of 2 * batch * size * size each."""
    return 4 * BATCH * spec["size"] ** 2


def step_seconds(spec, step):
    """Return how long a step takes on the simulated device. Each run has its own luck, each warm-up step is slow."""
    luck = np.random.default_rng([spec["size"], spec["devices"], spec["repeat"]]).normal(0, NOISE)
    return flop(spec) / SPEED * math.exp(luck) * (WARMUP_FACTOR if step < spec["warmup_steps"] else 1)


# --- bench/train and bench/workloads: one rank trains a copy of the model on samples of its own.
def rank(spec, number, pipe):
    """Learn the identity matrix by gradient descent. After each step all ranks continue with the mean gradient."""
    samples, weights, clock = np.random.default_rng(number), np.zeros((spec["size"], spec["size"])), 0.0
    for step in range(spec["warmup_steps"] + spec["measure_steps"]):
        inputs = samples.normal(size=(BATCH, spec["size"]))
        error = inputs @ (weights - np.eye(spec["size"]))
        gradient = inputs.T @ error / BATCH
        pipe.send((clock + step_seconds(spec, step), gradient, float(np.mean(error**2))))
        clock, gradient = pipe.recv()
        weights -= 0.3 * gradient


# --- bench/run: the node forks one process per device, which costs no new imports, and keeps the ranks in step.
def fork(spec):
    """Train on all devices of a run; return the end of each step in seconds and its loss."""
    fork_context, pipes, children = multiprocessing.get_context("fork"), [], []
    for number in range(spec["devices"]):
        here, there = fork_context.Pipe()
        children.append(fork_context.Process(target=rank, args=(spec, number, there)))
        children[-1].start()
        there.close()  # so that a dead rank ends the run instead of hanging it
        pipes.append(here)
    steps = []
    for _ in range(spec["warmup_steps"] + spec["measure_steps"]):
        clocks, gradients, losses = zip(*(pipe.recv() for pipe in pipes), strict=True)
        for pipe in pipes:
            pipe.send((max(clocks), np.mean(gradients, axis=0)))  # a step ends when its slowest rank ends
        steps.append((max(clocks), float(np.mean(losses))))
    for child in children:
        child.join()
    return steps


def window(spec, steps):
    """Return start and end of what is measured: all steps after the warm-up, which is not typical."""
    return steps[spec["warmup_steps"] - 1][0], steps[-1][0]


# --- bench/meters: a meter reads power at its own pace, so no reading falls on an edge of the window.
def trace(device, seconds):
    """Return times and watts of the readings of a device, from 0 to beyond the end."""
    times = METER_SECONDS * np.arange(math.ceil(seconds / METER_SECONDS) + 1)
    return times, WATTS + 10 * device + WATTS_PER_SECOND * times


def joules(times, watts, start, end):
    """Integrate power over a window. Power at both edges is interpolated between the readings around them."""
    edges = np.array([start, *times[(times > start) & (times < end)], end])
    return float(np.trapezoid(np.interp(edges, times, watts), edges))


# --- bench/record and bench/figures: what happened, in units that are part of each name, in a file of its own.
def record(spec, folder):
    """Do one run and write its record."""
    steps = fork(spec)
    start, end = window(spec, steps)
    samples = BATCH * spec["devices"] * spec["measure_steps"]
    energy = sum(joules(*trace(device, end), start, end) for device in range(spec["devices"]))
    values = {"window_seconds": end - start, "samples": samples, "energy_joules": energy, "loss": steps[-1][1]}
    values["flop"] = flop(spec) * spec["devices"] * spec["measure_steps"]
    name = f"size{spec['size']}-d{spec['devices']}-r{spec['repeat']}.json"
    (folder / name).write_text(json.dumps({"spec": spec, "window": [start, end], **values}, indent=2))


# --- analytics/law: time = work / (devices * speed). On logarithms this is a sum with one unknown, the speed.
STUDENT = {11: 2.201}  # the 97.5 % quantile of Student's t for 12 runs less one unknown


def law(records):
    """Fit the speed of one device, in FLOP/s, by least squares on logarithms; return value, low and high (95 %)."""
    logs = np.log([r["flop"] / (r["spec"]["devices"] * r["window_seconds"]) for r in records])
    half = STUDENT[len(logs) - 1] * np.std(logs, ddof=1) / math.sqrt(len(logs))
    return tuple(float(np.exp(np.mean(logs) + shift)) for shift in (0, -half, half))


# --- analytics/say: the answer first, then how sure it is, then what to do next, then the table.
def say(records):
    """Print the answer of a suite."""
    speed, low, high = law(records)
    time, longest, shortest = (1e9 / (2 * v) for v in (speed, low, high))
    print(f"2 devices do 1 GFLOP in {time:.0f} s ({shortest:.0f}-{longest:.0f}).")
    print(f"One device does {speed / 1e6:.2f} MFLOP/s ({low / 1e6:.2f}-{high / 1e6:.2f}): 95 %, {len(records)} runs.")
    print("Next: bench run suites/scaling.yaml measures your own devices.\n")
    print("size  devices  repeat  samples/s  J/sample    loss")
    for r in sorted(records, key=lambda r: [r["spec"][name] for name in ("size", "devices", "repeat")]):
        rate, cost = r["samples"] / r["window_seconds"], r["energy_joules"] / r["samples"]
        spec = r["spec"]
        print(f"{spec['size']:4}  {spec['devices']:7}  {spec['repeat']:6}  {rate:9.1f}  {cost:8.2f}  {r['loss']:6.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for run in expand(SUITE):
            record(run, place)
        say([json.loads(path.read_text()) for path in sorted(place.glob("*.json"))])
