"""DistributedDataParallel, started by torchrun: 22 samples, 2 epochs; the last batch of an epoch is smaller."""

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import wattbench

dist.init_process_group("gloo")
torch.manual_seed(0)
data = TensorDataset(torch.randn(22, 8), torch.randn(22, 1))
sampler = DistributedSampler(data)
loader = DataLoader(data, batch_size=4, sampler=sampler)
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for inputs, targets in loader:
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wattbench.step(samples=len(inputs))
    with wattbench.phase("eval"), torch.no_grad():
        model.module(data.tensors[0])
time.sleep(0.1)  # Threads of gloo let go of the last gradients; torch aborts where Python ends meanwhile.
dist.destroy_process_group()
