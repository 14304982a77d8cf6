"""Epochs over small images with a test set, as the first example of every tutorial."""

import torch
import truth
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(model, loader, optimizer, epoch):
    model.train()
    for batch, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(nn.functional.log_softmax(model(x), 1), y)
        loss.backward()
        optimizer.step()
        truth.step(len(x))
        if batch % 10 == 0:
            share = 100.0 * batch / len(loader)
            print(
                f"Train Epoch: {epoch} [{batch * len(x)}/{len(loader.dataset)} ({share:.0f}%)]\tLoss: {loss.item():.6f}",
                flush=True,
            )


def test(model, loader):
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    print(f"\nTest set: Accuracy: {right}/{len(loader.dataset)}\n", flush=True)


def main():
    torch.manual_seed(0)
    x, y = torch.rand(2500, 1, 28, 28), torch.randint(0, 10, (2500,))
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(4608, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    training = DataLoader(TensorDataset(x[:2000], y[:2000]), 64, shuffle=True)  # 32 batches, the last has 16
    held_out = DataLoader(TensorDataset(x[2000:], y[2000:]), 100)
    optimizer = torch.optim.Adadelta(model.parameters())
    for epoch in range(1, 3):
        train(model, training, optimizer, epoch)
        test(model, held_out)


if __name__ == "__main__":
    main()
