"""Images with a criterion, SGD and meters in the log, one process a device by mp.spawn: PROCESSES=2."""

import os
import time

import torch
import truth
from torch import nn

BATCH, STEPS = 32, 40


def worker(rank, world):
    os.environ["TRUTH_RANK"] = str(rank)
    if world > 1:
        store = torch.distributed.FileStore(os.environ["RENDEZVOUS"], world)
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world, store=store)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(8),
        nn.Flatten(),
        nn.Linear(1024, 100),
    )
    model = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()
    end = time.time()
    for i in range(STEPS):
        images, target = torch.randn(BATCH // world, 3, 112, 112), torch.randint(0, 100, (BATCH // world,))
        loss = criterion(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        truth.step(BATCH // world)
        seconds, end = time.time() - end, time.time()
        print(
            f"Epoch: [0][{i + 1:3d}/{STEPS}]\tTime {seconds:6.3f} ( 0.050)\tLoss {loss.item():.4e} (4.6e+00)",
            flush=True,
        )
    if world > 1:
        torch.distributed.destroy_process_group()


def main():
    world = int(os.environ.get("PROCESSES", 1))
    if world == 1:
        worker(0, 1)
    else:
        torch.multiprocessing.spawn(worker, args=(world,), nprocs=world)


if __name__ == "__main__":
    main()
