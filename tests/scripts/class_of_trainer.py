"""A trainer class with callbacks, in the style of small educational libraries."""

import time

import torch
import truth
from torch import nn


class Trainer:
    """Owns the loop and calls `on_batch_end`."""

    def __init__(self, model, dataset, batch_size):
        self.model, self.callback, self.iter_num = model, None, 0
        self.loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True)
        self.optimizer = torch.optim.AdamW(model.parameters())

    def run(self, steps):
        data, self.last = iter(self.loader), time.time()
        while self.iter_num < steps:
            try:
                x, y = next(data)
            except StopIteration:
                data = iter(self.loader)
                x, y = next(data)
            self.loss = nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
            self.model.zero_grad(set_to_none=True)
            self.loss.backward()
            self.optimizer.step()
            truth.step(len(x), x.numel())
            self.callback(self)
            self.iter_num += 1
            self.iter_dt, self.last = time.time() - self.last, time.time()


def report(trainer):
    """Print a line every tenth step."""
    if trainer.iter_num % 10 == 0:
        ms, loss = getattr(trainer, "iter_dt", 0) * 1000, trainer.loss.item()
        print(f"iter_dt {ms:.2f}ms; iter {trainer.iter_num}: train loss {loss:.5f}", flush=True)


def main():
    torch.manual_seed(0)
    x = torch.randint(0, 10, (1000, 48))
    layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, batch_first=True)
    blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(10, 64), blocks, nn.Linear(64, 10))
    trainer = Trainer(
        model, torch.utils.data.TensorDataset(x, x.roll(-1, 1)), batch_size=32
    )  # the last of an epoch has 8
    trainer.callback = report
    trainer.run(100)


if __name__ == "__main__":
    main()
