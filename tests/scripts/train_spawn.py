"""Processes started by the script itself, with torch.multiprocessing: 12 steps of 5 samples in each of two."""

import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import wattbench


def train(rank: int, world: int) -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29541")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        loss = model(torch.randn(5, 8)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wattbench.step(samples=5, loss=loss.item())
    time.sleep(0.1)  # Threads of gloo let go of the last gradients; torch aborts where Python ends meanwhile.
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(train, args=(2,), nprocs=2)
