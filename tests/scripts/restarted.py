"""DDP that loses its second process once, by SIGKILL after step LOST; with CHECKPOINT it goes on from every fourth step.

Each rank appends to `TRUTH-RANK` at the end of each step: [time by CLOCK_MONOTONIC, samples, number of the step, restart].
"""

import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import wattbench

STEPS = 16
dist.init_process_group("gloo")
rank, restart = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
saved, truth = Path(os.environ.get("CHECKPOINT", "")), Path(f"{os.environ['TRUTH']}-{rank}")
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = getattr(torch.optim, os.environ.get("OPTIMIZER", "Adam"))(model.parameters(), lr=0.01)
done = 0
if saved.is_file():
    done, own, others = torch.load(saved)
    model.module.load_state_dict(own)
    optimizer.load_state_dict(others)
for number in range(done + 1, STEPS + 1):
    inputs = torch.randn(3 + number % 2, 8)
    model(inputs).mean().backward()
    time.sleep(0.05)
    optimizer.step()
    optimizer.zero_grad()
    if os.environ.get("REPORT"):
        wattbench.step(samples=len(inputs))
    with truth.open("a") as file:
        file.write(json.dumps([time.monotonic(), len(inputs), number, restart]) + "\n")
    if saved.name and number % 4 == 0 and rank == 0:
        torch.save((number, model.module.state_dict(), optimizer.state_dict()), saved)
    if (rank, restart, number) == (1, 0, int(os.environ.get("LOST", "0"))):
        os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.1)  # Threads of gloo let go of the last gradients; torch aborts where Python ends meanwhile.
dist.destroy_process_group()
