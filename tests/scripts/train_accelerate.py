"""A loop with accelerate and accumulation: 22 samples, 2 epochs; with an argument 32, so that all steps are equal."""

import sys
import time

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import wattbench

tracker = wattbench.AccelerateTracker(samples_per_step=8 if len(sys.argv) > 1 else None)
accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2, log_with=tracker)
accelerator.init_trackers("example")
torch.manual_seed(0)
rows = 32 if len(sys.argv) > 1 else 22
loader = DataLoader(TensorDataset(torch.randn(rows, 8), torch.randn(rows, 1)), batch_size=4)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
done = 0
for epoch in range(2):
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            done += 1
            accelerator.log({"train_loss": loss.item(), "epoch": epoch}, step=done)
time.sleep(0.1)  # Threads of gloo let go of the last gradients; torch aborts where Python ends meanwhile.
accelerator.end_training()
