"""A character model in one loop: accumulation, an estimate of the loss every few steps, checkpoints, DDP by torchrun."""

import os
import time

import torch
import truth
from torch import nn
from torch.nn.functional import cross_entropy

BATCH, LENGTH, MICRO, STEPS = 6, 64, 2, 60


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(65, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 65)

    def forward(self, idx, targets=None):
        mask = nn.Transformer.generate_square_subsequent_mask(idx.shape[1])
        logits = self.head(self.blocks(self.embed(idx), mask=mask, is_causal=True))
        return logits, None if targets is None else cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch():
    data = torch.randint(0, 65, (BATCH, LENGTH + 1))
    return data[:, :-1], data[:, 1:]


def main():
    ddp = "RANK" in os.environ
    if ddp:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = raw = Model()
    if ddp:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    begun = time.time()
    for i in range(STEPS):
        if i % 25 == 0 and int(os.environ.get("RANK", 0)) == 0:
            raw.eval()
            with torch.no_grad():
                losses = [raw(*batch())[1].item() for _ in range(4)]
            raw.train()
            print(f"step {i}: val loss {sum(losses) / 4:.4f}", flush=True)
            torch.save({"model": raw.state_dict()}, os.environ.get("CHECKPOINT", os.devnull))
        for micro in range(MICRO):
            if ddp:
                model.require_backward_grad_sync = micro == MICRO - 1
            _, loss = model(*batch())
            (loss / MICRO).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        truth.step(BATCH * MICRO, BATCH * MICRO * LENGTH)
        ms, begun = (time.time() - begun) * 1000, time.time()
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"iter {i}: loss {loss.item():.4f}, time {ms:.2f}ms, mfu -100.00%", flush=True)
    if ddp:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
