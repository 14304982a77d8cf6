"""The module of a training step."""

from __future__ import annotations

import torch

from bench.strategies.parts import Parts


class Objective(torch.nn.Module):  # type: ignore[misc]  # torch's types are not read
    """Batch -> loss: the module that is replicated, sharded and compiled, so that the loss is compiled with the model."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.model = parts.model
        self.parts = parts

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""
        return self.parts.loss(self.model, batch)
