"""Lightning with accumulation, validation and checkpoints: 22 samples, 2 epochs.

`train_lightning.py DEVICES STRATEGY EPOCHS CHECKPOINT`.
"""

import sys

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import wattbench


class Regression(pl.LightningModule):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    devices, strategy = (*sys.argv[1:], "1", "auto")[:2] if len(sys.argv) < 3 else sys.argv[1:3]
    epochs, checkpoint = sys.argv[3:5] or ("2", None)
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(22, 8), torch.randn(22, 1)), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=int(epochs),
        accumulate_grad_batches=2,
        callbacks=[wattbench.LightningCallback()],
        devices=int(devices),
        strategy=strategy,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Regression(), data, data, ckpt_path=checkpoint)
