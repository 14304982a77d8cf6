"""Images with an average of the weights (EMA), accumulation and a validation each epoch, in the style of image libraries."""

import copy
import time

import torch
import truth
from torch import nn

BATCH, MICRO, EPOCHS, UPDATES = 16, 2, 2, 20


def main():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 4, 4),
        nn.GELU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32 * 256, 10),
    )
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    for epoch in range(EPOCHS):
        model.train()
        begun = time.time()
        for batch in range(UPDATES * MICRO):
            loss = nn.functional.cross_entropy(
                model(torch.randn(BATCH, 3, 64, 64)), torch.randint(0, 10, (BATCH,)), label_smoothing=0.1
            )
            (loss / MICRO).backward()
            if (batch + 1) % MICRO:
                continue
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 0.01)
            truth.step(BATCH * MICRO)
            update, seconds = batch // MICRO, time.time() - begun
            begun = time.time()
            place = f"{epoch} [{update:4d}/{UPDATES} ({100 * update / (UPDATES - 1):3.0f}%)]"
            speed = f"Time: {seconds:.3f}s, {BATCH * MICRO / seconds:.2f}/s"
            print(f"Train: {place}  Loss: {loss.item():#.3g}  {speed}", flush=True)
        model.eval()
        with torch.inference_mode():
            for batch in range(3):
                average(torch.randn(BATCH, 3, 64, 64))
                print(f"Test: [{batch:4d}/3]  Time: 0.010", flush=True)


if __name__ == "__main__":
    main()
