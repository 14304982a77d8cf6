"""A small training in one thread, told what to do through its input; `tests.benchmarks.observer` starts one a contender.

    python training.py nothing|codecarbon|zeus|carbontracker

A command is a line of JSON, its answer another one. It imports nothing of this repository, so that the interpreter of
any environment with torch can run it, and reaches no network: trackers that look up where they are find nobody.
"""

import contextlib
import importlib.metadata
import json
import os
import socket
import sys
import time
from pathlib import Path

WARM_SECONDS = 0.3
"""Steps before each window, not counted: what came before must not tell."""


class Nothing:
    """No tracker, and what the others share: `start` and `stop` around a training, `begin` and `end` around a window."""

    package = ""

    def start(self): ...
    def begin(self): ...
    def end(self): ...
    def stop(self): ...


class CodeCarbon(Nothing):
    package = "codecarbon"

    def start(self):
        from codecarbon import OfflineEmissionsTracker

        self.tracker = OfflineEmissionsTracker(country_iso_code="FRA")
        self.tracker.start()

    def stop(self):
        self.tracker.stop()
        assert self.tracker.final_emissions_data.cpu_energy > 0  # it swallows its errors


class Zeus(Nothing):
    package = "zeus"

    def start(self):
        from zeus.monitor import ZeusMonitor

        self.monitor = ZeusMonitor()

    def begin(self):
        self.monitor.begin_window("window", sync_execution=False)  # the GPU is a stand-in: nothing to wait for

    def end(self):
        assert self.monitor.end_window("window", sync_execution=False).gpu_energy


class CarbonTracker(Nothing):
    package = "carbontracker"

    def start(self):
        from carbontracker.tracker import CarbonTracker as Tracker

        self.tracker = Tracker(epochs=3)

    def begin(self):
        self.tracker.epoch_start()

    def end(self):
        self.tracker.epoch_end()

    def stop(self):
        self.tracker.stop()


TRACKERS = {"nothing": Nothing, "codecarbon": CodeCarbon, "zeus": Zeus, "carbontracker": CarbonTracker}


def no_network():
    """Refuse names and connections, except those between processes of this machine."""
    connect = socket.socket.connect

    def refuse(*_, **__):
        raise socket.gaierror("no network here")

    def local(self, address):
        return connect(self, address) if self.family == socket.AF_UNIX else refuse()

    socket.getaddrinfo, socket.socket.connect = refuse, local


def complete_nvml():
    """Let the stand-in for NVML answer two questions of the trackers that it may leave open."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        instant = [(pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_POWER_SCOPE_GPU)]
        answers = {
            "nvmlDeviceGetArchitecture": lambda _: pynvml.NVML_DEVICE_ARCH_HOPPER,
            "nvmlDeviceGetPowerUsage": lambda gpu: pynvml.nvmlDeviceGetFieldValues(gpu, instant)[0].value.uiVal,
        }
        for name, answer in answers.items():
            try:
                getattr(pynvml, name)(handle)
            except (pynvml.NVMLError, AssertionError):
                setattr(pynvml, name, answer)
        pynvml.nvmlShutdown()


def make_step():
    """Return a function that trains a small transformer by one step."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Embedding(256, 64), layer, nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(256, (8, 33))

    def step():
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def window(step, seconds):
    """Train for so long; return steps, seconds, and the CPU seconds of this process outside the training thread."""
    steps, process, thread, start = 0, time.process_time(), time.thread_time(), time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        step()
        steps += 1
    process, thread = time.process_time() - process, time.thread_time() - thread
    return {"steps": steps, "seconds": now - start, "other_cpu": process - thread}


def rest(seconds):
    """Do nothing for so long; return the CPU seconds of this process."""
    process, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return {"seconds": time.perf_counter() - start, "other_cpu": time.process_time() - process}


def obey(command, tracker, step):
    """Do what a command says and return its answer. `edges`: seconds in the tracker's calls around a window."""
    start = time.perf_counter()
    if command["do"] in ("start", "stop"):
        getattr(tracker, command["do"])()
        return {"seconds": time.perf_counter() - start}
    if command["do"] == "train":
        window(step, WARM_SECONDS)
    tracked = tracker if command["tracked"] else Nothing()
    times = [time.perf_counter()]
    tracked.begin()
    times.append(time.perf_counter())
    found = rest(command["seconds"]) if command["do"] == "rest" else window(step, command["seconds"])
    times.append(time.perf_counter())
    tracked.end()
    times.append(time.perf_counter())
    return found | {"edges": times[1] - times[0] + times[3] - times[2]}


def main():
    """Answer commands until the input ends."""
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    with Path(os.devnull).open("r+") as nothing:  # trackers print, and start programs
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    no_network()
    complete_nvml()
    tracker, step = TRACKERS[sys.argv[1]](), make_step()
    version = importlib.metadata.version(tracker.package) if tracker.package else ""
    answers.write(json.dumps({"version": version}) + "\n")
    for line in commands:
        answers.write(json.dumps(obey(json.loads(line), tracker, step)) + "\n")
    answers.flush()
    os._exit(0)  # trackers leave threads behind


if __name__ == "__main__":
    main()
