"""A loop with accelerate that knows nothing of wattbench: 60 steps, of 8 samples in each process; the last 50 are timed."""

import time

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
count = 60 * 8 * accelerator.num_processes
loader = DataLoader(TensorDataset(torch.randn(count, 8), torch.randn(count, 1)), batch_size=8)
model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for number, (inputs, targets) in enumerate(loader, 1):
    time.sleep(0.02)
    accelerator.backward(torch.nn.functional.mse_loss(model(inputs), targets))
    optimizer.step()
    optimizer.zero_grad()
    if number == 10:
        start = time.monotonic()
if accelerator.is_main_process:
    print(
        "stated", accelerator.num_processes, 50 * 8 * accelerator.num_processes / (time.monotonic() - start), flush=True
    )
